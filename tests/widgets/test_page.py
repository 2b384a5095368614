"""Static pages: they hold the whole state, they ask for nothing, and no text in them is taken for code."""

import json
import re
from base64 import b64decode
from html.parser import HTMLParser

import pytest

from dbksvd_dask.widgets.page import write_page


class Page(HTMLParser):
    """What a browser would make of a page: its title, its scripts, and what its elements refer to."""

    def __init__(self, path):
        super().__init__()
        self.texts, self.references, self.policies, self.tags, self._open = {}, [], [], [], None
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._open = tag
        if ("http-equiv", "Content-Security-Policy") in attributes:
            self.policies.append(dict(attributes)["content"])
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        self.texts[self._open] = self.texts.get(self._open, "") + data

    def json_after(self, text):
        script = self.texts["script"]
        return json.JSONDecoder().raw_decode(script, script.rindex(text) + len(text))[0]  # the widget's own is before


@pytest.fixture
def page(tmp_path):
    def write(title="A fit", widget_name="monitor", **state):
        write_page(tmp_path / "page.html", title, widget_name, state)
        return Page(tmp_path / "page.html")

    return write


def test_the_state_is_in_the_page(page):
    written = page(static=True, labels={"17": "rivers é ∥"}, points=bytes(range(256)), empty=b"")
    assert written.json_after("const state = ") == {"static": True, "labels": {"17": "rivers é ∥"}}
    buffers = written.json_after("Object.entries(")
    assert {name: b64decode(text) for name, text in buffers.items()} == {"points": bytes(range(256)), "empty": b""}


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--<script>", "$css ${state} $$", "\u2028'\"\\"]
)
def test_text_is_never_taken_for_code(page, text):
    written = page(title=text, labels={"1": text}, **{text: 1})
    assert written.json_after("const state = ") == {"labels": {"1": text}, text: 1}
    assert written.texts["title"] == text
    assert written.tags == page().tags


@pytest.mark.parametrize("widget_name", ["monitor", "explorer"])
def test_a_page_asks_for_nothing(page, widget_name):
    written = page(widget_name=widget_name)
    assert written.references == ["data:,"]  # no icon
    (policy,) = written.policies  # and were there anything, browsers would not ask
    assert {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")} == {
        "default-src": ["'none'"],
        "script-src": ["'unsafe-inline'"],
        "style-src": ["'unsafe-inline'"],
        "img-src": ["data:"],
    }
    assert not re.search(r"@import|url\((?!['\"]?data:)", written.texts["style"])
    script = written.texts["script"]
    assert not re.search(r"\bimport\b|\bfetch\b|XMLHttpRequest|WebSocket|sendBeacon|sourceMappingURL", script)
    assert set(re.findall(r"\w+://[^\"'`\s/]*/", script)) <= {"http://www.w3.org/"}  # names of namespaces


@pytest.mark.parametrize("widget_name", ["monitor", "explorer"])
def test_the_script_of_the_widget_is_rendered(page, widget_name):
    script = page(widget_name=widget_name).texts["script"]
    assert script.count("const dbksvdWidget = {") == script.count("dbksvdWidget.render({ model, el:") == 1
    assert not re.search(r"^export\b", script, re.MULTILINE)


def test_an_old_page_is_replaced(page):
    page(title="old")
    assert page(title="new").texts["title"] == "new"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"deep": [float("-inf")]}])
def test_values_that_json_lacks_are_refused(page, value):
    with pytest.raises(ValueError, match="JSON"):
        page(value=value)


def test_other_objects_are_refused(page):
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        page(value={1, 2})
