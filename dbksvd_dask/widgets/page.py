"""Static pages of widgets: one HTML file that holds everything and asks for nothing."""

import json
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from os import PathLike
from pathlib import Path
from string import Template
from typing import Any

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 16px; max-width: 1200px; background: #fff; }
@media (prefers-color-scheme: dark) { body { background: #111; } }
</style>
<style>
$css
</style>
</head>
<body>
<noscript>This page needs JavaScript.</noscript>
<main></main>
<script type="module">
$javascript
{
  const state = $state;
  for (const [name, text] of Object.entries($buffers)) {
    state[name] = new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  }
  const handlers = new Map();
  const model = {
    get: (name) => state[name],
    set(name, value) {
      if (state[name] === value) return;
      state[name] = value;
      for (const event of ["change:" + name, "change"]) {
        for (const handler of handlers.get(event) ?? []) handler();
      }
    },
    on(events, handler) {
      for (const event of events.split(" ")) handlers.set(event, [...(handlers.get(event) ?? []), handler]);
    },
    off(events, handler) {
      for (const event of events?.split(" ") ?? [...handlers.keys()]) {
        handlers.set(event, (handlers.get(event) ?? []).filter((other) => handler && other !== handler));
      }
    },
    save_changes() {},
    send() {},
  };
  dbksvdWidget.render({ model, el: document.querySelector("main") });
}
</script>
</body>
</html>
""")


def write_page(path: str | PathLike[str], title: str, widget_name: str, state: Mapping[str, Any]) -> None:
    """Write a page that shows a widget as it is now, without a kernel and without a network.

    The script and the style of the widget are in the page, and a stand-in for the model that the script would find in
    a notebook: what it sets, it gets; what it sends, nobody hears.

    Parameters
    ----------
    path : str or path-like
        Written anew if there is such a file.
    title : str
        Of the browser's window.
    widget_name : str
        The script and the style are ``static/<widget_name>.js`` and ``.css``.
    state : mapping
        What ``model.get`` gives: plain JSON, or bytes, which arrive as a DataView, as in a notebook.

    Raises
    ------
    TypeError, ValueError
        If a value is neither bytes nor plain JSON; NaN and infinity are not.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from pathlib import Path
    >>> from dbksvd_dask.widgets.page import write_page
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "fit.html"
    ...     write_page(path, "A fit", "monitor", {"static": True})
    ...     "<title>A fit</title>" in path.read_text()
    True
    """
    buffers = {name: b64encode(value).decode() for name, value in state.items() if isinstance(value, bytes)}
    plain = {name: value for name, value in state.items() if name not in buffers}
    page = _PAGE.substitute(
        title=escape(title),
        css=_static(f"{widget_name}.css"),
        javascript=_static(f"{widget_name}.js").replace("export default", "const dbksvdWidget =", 1),
        state=_script_json(plain),
        buffers=_script_json(buffers),
    )
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(page.encode())  # encoded first: what cannot be leaves the page that was there


def _static(name: str) -> str:
    return (files("dbksvd_dask.widgets") / "static" / name).read_text(encoding="utf-8")


def _script_json(value: Any) -> str:
    # "</script>" in a label must not end the script.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
