"""The documentation site: it builds without a warning, is whole, loads nothing from elsewhere, and its Python runs."""

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
from functools import wraps
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import xarray as xr

import dbksvd_dask
from dbksvd_dask import DBKSVD

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUIDES = [ROOT / "README.md", *sorted((DOCS / "howto").glob("*.md"))]
NEEDED = "sphinx", "myst_nb", "numpydoc", "pydata_sphinx_theme"
MODULES = "bounds", "callbacks", "cluster", "embeddings", "history", "interop", "metrics", "plotting", "widgets"

LOADED = "img", "script", "iframe", "source", "video", "audio", "embed", "input", "track"
"""Elements whose `src` is loaded with the page."""

NOT_LOADED = {"next", "prev", "search", "index", "author", "canonical"}
"""What a <link> may be that is not loaded."""

STYLE_URL = re.compile(r"""(?:url\(|@import(?=\s*["']))\s*["']?([^"')\s;]+)""")


class Page(HTMLParser):
    """What a page links and loads, and the anchors that it has."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.links, self.loads, self.anchors, self.in_style = path, set(), set(), set(), False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.in_style = tag == "style"
        self.loads |= set(STYLE_URL.findall(given.get("style", "")))
        self.loads |= {place.split()[0] for place in given.get("srcset", "").split(",") if place.strip()}
        if tag in LOADED and "src" in given:
            self.loads.add(given["src"])
        elif tag == "link" and given["rel"] not in NOT_LOADED:
            self.loads.add(given["href"])
        elif tag == "a" and "href" in given:
            self.links.add(given["href"])

    def handle_data(self, data):
        if self.in_style:
            self.loads |= set(STYLE_URL.findall(data))


def is_elsewhere(address):
    return bool(urlsplit(address).netloc)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-b", "html", "-d", folder / "doctrees"]
    made = subprocess.run(
        [*command, DOCS, folder / "html"], capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"}
    )
    return folder / "html", made


@pytest.fixture(scope="module")
def pages(build):
    # The theme leaves a template of its own among the files that pages load.
    return {path: Page(path) for path in sorted(build[0].rglob("*.html")) if "_static" not in path.parts}


def test_the_site_builds_without_a_warning(build):
    assert build[1].returncode == 0, build[1].stderr


@pytest.mark.parametrize("name", sorted({*dbksvd_dask.__all__, *MODULES}))
def test_every_public_name_and_module_is_in_the_reference(pages, name):
    anchors = {anchor for path, page in pages.items() if "api" in path.parts for anchor in page.anchors}
    assert f"{'module-' if name in MODULES else ''}dbksvd_dask.{name}" in anchors


def test_every_notebook_is_in_the_tutorial(build, pages):
    links = pages[build[0] / "tutorial.html"].links
    missing = [
        path.stem for path in (ROOT / "notebooks").glob("*.ipynb") if f"_notebooks/{path.stem}.html" not in links
    ]
    assert not missing


def test_links_lead_to_pages_and_anchors_that_there_are(pages):
    broken = []
    for page in pages.values():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            if not path.exists() or (
                path in pages and parts.fragment and unquote(parts.fragment) not in pages[path].anchors
            ):
                broken.append((page.path.name, link))
    assert not broken


def test_no_page_loads_anything_from_another_host(pages):
    assert not [(page.path.name, address) for page in pages.values() for address in page.loads if is_elsewhere(address)]


def test_no_style_sheet_loads_anything_from_another_host(build):
    sheets = list(build[0].rglob("*.css"))
    assert sheets
    assert not [
        (path.name, url) for path in sheets for url in STYLE_URL.findall(path.read_text("utf-8")) if is_elsewhere(url)
    ]


def test_what_a_page_loads_is_there(pages):
    missing = []
    for page in pages.values():
        local = {urlsplit(address) for address in page.loads if not is_elsewhere(address)}
        paths = {page.path.parent / unquote(parts.path) for parts in local if parts.scheme == "" and parts.path}
        missing += [(page.path.name, str(path)) for path in paths if not path.exists()]
    assert not missing


@pytest.fixture(scope="module")
def some_data(tmp_path_factory):
    """The sample data, with every fifth sample only."""
    folder = tmp_path_factory.mktemp("guides") / "data"
    with xr.open_zarr(ROOT / "data" / "minilm-wikitext2.zarr") as everything:
        some = everything.isel(sample=slice(None, None, 5)).chunk(sample=-1).drop_encoding()
        some.to_zarr(folder / "minilm-wikitext2.zarr", consolidated=False)
    return folder


@pytest.fixture
def short_fits(monkeypatch):
    begin = DBKSVD.__init__

    @wraps(begin)
    def begin_short(model, *arguments, **parameters):
        begin(model, *arguments, **parameters)
        model.max_iter = min(model.max_iter, 2)

    monkeypatch.setattr(DBKSVD, "__init__", begin_short)


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_the_python_of_a_guide_runs(path, short_fits, some_data, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(some_data)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    code = compile("\n".join(blocks), path.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    outcome = eval(code, {"__name__": "guide"})
    if inspect.iscoroutine(outcome):
        asyncio.run(run_through(outcome))


async def run_through(coroutine):
    await coroutine
