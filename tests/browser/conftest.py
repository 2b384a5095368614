"""A JupyterLab for all journeys, and for each a page that must not ask for anything beyond this machine."""

import os
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

from browser.lab import PATIENCE, REPOSITORY, Lab, Notebook, leaves

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
FOLDERS = [Path(folder).resolve() for folder in os.environ.get("DBKSVD_IPYKERNELS", "").split(os.pathsep) if folder]
KERNELS = {"python3": None} | {folder.name: folder for folder in FOLDERS}
"""Kernels by name: the ipykernel that is installed, and those that `pip install --target` has put into folders."""


@pytest.fixture(scope="module")  # while it is there, asyncio has a running loop in this thread
def browser():
    missing = [name for name in ("jupyterlab", "anywidget", "playwright") if find_spec(name) is None]
    missing += [] if CHROMIUM.exists() else [str(CHROMIUM)]
    if missing and os.environ.get("DBKSVD_BROWSER") != "required":
        pytest.skip(f"{', '.join(missing)} missing: pip install -e '.[dev]' and apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"), KERNELS)
    yield lab
    lab.close()


@pytest.fixture(params=KERNELS)
def kernel(request):
    return request.param


@pytest.fixture
def page(browser, lab, tmp_path):
    """A page; at its end it is checked that it has asked for nothing beyond this machine and has logged no error."""
    context = browser.new_context(viewport={"width": 1280, "height": 1400}, service_workers="block")
    context.set_default_timeout(1e3 * PATIENCE)
    asked, errors = [], []
    context.route("**/*", lambda route: route.abort() if leaves(route.request.url) else route.continue_())
    context.on("request", lambda request: asked.append(request.url))
    context.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    context.on("weberror", lambda error: errors.append(error.error.stack or str(error.error)))
    context.on("dialog", lambda dialog: dialog.accept())  # leave the page, though the notebook is not saved
    page = context.new_page()
    page.on("websocket", lambda socket: asked.append(socket.url))
    yield page
    page.screenshot(path=tmp_path / "page.png")
    print(f"the page at its end: {tmp_path / 'page.png'}; what JupyterLab and its kernels have logged: {lab.log}")
    context.close()
    assert [url for url in asked if leaves(url)] == []
    assert any(url.startswith("ws:") for url in asked)
    assert errors == []


@pytest.fixture
def open_notebook(lab, page, kernel):
    """Open a notebook of the repository, with cells before and after its own, or one of such cells only."""

    def open_notebook(name=None, before=(), after=()):
        own = nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4).cells if name else []
        first, last = (list(map(nbformat.v4.new_code_cell, cells)) for cells in (before, after))
        return Notebook(page, lab.write([*first, *own, *last], kernel))

    yield open_notebook
    page.evaluate("() => jupyterapp.serviceManager.sessions.shutdownAll()")


@pytest.fixture
def photographs(tmp_path):
    """Where pictures of the widgets are kept."""
    folder = Path(os.environ.get("DBKSVD_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
