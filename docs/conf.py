"""How Sphinx makes the documentation site: ``sphinx-build -W --keep-going -n -b html docs docs/_build/html``."""

import re
import shutil
from importlib.metadata import version as version_of
from pathlib import Path, PurePosixPath
from posixpath import normpath
from tempfile import TemporaryDirectory
from typing import Any

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

from dbksvd_dask import DBKSVD, open_embeddings

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "dbksvd_dask"
author = "the dbksvd_dask developers"
copyright = "the dbksvd_dask developers, MIT licence"
version = release = version_of("dbksvd-dask")

extensions = ["myst_nb", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
exclude_patterns = ["_build", "_templates", "_widgets"]
templates_path = ["_templates"]
default_role = "py:obj"
nitpicky = True

# Notebooks are run by the tests; here they are shown as they were committed.
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # from a CDN by default; a page loads nothing from elsewhere
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_block"]

autodoc_typehints = "none"  # the docstrings have the types, with shapes
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = "dbksvd_dask"
html_favicon = html_logo = "_static/icon.svg"
html_static_path = ["_static"]
html_extra_path = ["_widgets"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_show_sourcelink = False
html_context = {"default_mode": "auto"}  # light or dark, as the browser has it
html_theme_options = {
    "logo": {"text": "dbksvd_dask", "alt_text": ""},
    "footer_start": ["copyright"],
    "footer_end": [],
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_nav_level": 2,
}
html_sidebars = {name: [] for name in ("index", "how-it-works", "performance", "peers", "changelog", "contributing")}

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "performance.md",
    "data/README.md": "sample-data.md",
}
"""Files of the repository that are pages of the site under another name."""

FOLDERS = {"docs": "", "notebooks": "_notebooks"}
"""Folders of it whose files are."""

_SOURCES = {".py", ".js", ".css"}
_LINK = re.compile(r"\]\((?!#|[a-z]+:)([^)#\s]+)")


def setup(app: Sphinx) -> None:
    """Say when what happens."""
    app.connect("config-inited", lambda *_: _copy_notebooks())
    app.connect("config-inited", lambda *_: _make_widget_pages())
    app.connect("include-read", lambda _app, path, _name, content: _link_pages((HERE / path).resolve(), content))
    app.connect("source-read", lambda _app, name, content: _link_pages_of_notebook(name, content))
    app.connect("missing-reference", _link_or_code)


def _copy_notebooks() -> None:
    """Take the notebooks in: what is in the folder of the site is what Sphinx reads."""
    folder = HERE / "_notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy2(notebook, folder)


def _make_widget_pages() -> None:
    """The monitor and the explorer of a fit of the sample data, as pages of their own, unless they are up to date."""
    folder = HERE / "_widgets"
    pages = [folder / "monitor.html", folder / "explorer.html"]
    made = min(page.stat().st_mtime if page.exists() else 0 for page in pages)
    if made > max(path.stat().st_mtime for path in (ROOT / "dbksvd_dask").rglob("*") if path.suffix in _SOURCES):
        return
    folder.mkdir(exist_ok=True)
    data = ROOT / "data" / "minilm-wikitext2.zarr"
    Y = open_embeddings(data)
    train, held_out = (Y[(Y.split == split).values] for split in ("train", "validation"))
    model = DBKSVD(512, 10, batch_size=4096, max_iter=30, center=True, random_state=0)
    run = model.fit_async(train, validation=held_out)
    D = run.wait().dictionary_
    run.monitor.to_html(pages[0])
    with TemporaryDirectory() as scratch:
        D.encode(Y).to_zarr(f"{scratch}/codes.zarr")
        D.explore(f"{scratch}/codes.zarr", embeddings=data).to_html(pages[1], n_atoms=100)


def _link_pages_of_notebook(name: str, content: list[str]) -> None:
    if name.startswith("_notebooks/"):
        _link_pages(ROOT / name.removeprefix("_"), content)


def _link_pages(path: Path, content: list[str]) -> None:
    """Links to files of the repository, in what is taken in from it, become links to the pages that these are."""
    folder = path.parent.relative_to(ROOT)

    def page(link: re.Match[str]) -> str:
        target = PurePosixPath(normpath(folder / link[1]))
        if str(target) in PAGES:
            return f"](/{PAGES[str(target)]}"
        if target.parts[0] in FOLDERS:
            return "](/" + str(PurePosixPath(FOLDERS[target.parts[0]], *target.parts[1:]))
        return link[0]

    content[0] = _LINK.sub(page, content[0])


def _link_or_code(app: Sphinx, env: Any, node: pending_xref, content: Element) -> Element | None:
    """What docstrings have in single backticks and no page is about is a name, as of a parameter; classes are found."""
    if node.get("reftype") != "obj":
        return None
    target = node["reftarget"]
    found = env.domains.python_domain.find_obj(env, None, None, target, None, 1) if target[0].isupper() else []
    places = {(place.docname, place.node_id) for _, place in found}
    return make_refnode(app.builder, node["refdoc"], *places.pop(), content) if len(places) == 1 else content
