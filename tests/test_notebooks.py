"""Every notebook runs from top to bottom in a kernel of its own, and what is stored in it is small."""

from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LARGEST = 1_000_000
"""Bytes: figures, but no data."""

NEEDS = {"07_evaluate": ("torch", "transformers")}
"""Packages without which a notebook does not run."""

SHORT_FITS = """
def _short_fits(longest=3):
    from functools import wraps

    from dbksvd_dask import DBKSVD

    begin = DBKSVD.__init__

    @wraps(begin)
    def begin_short(model, *arguments, **parameters):
        begin(model, *arguments, **parameters)
        model.max_iter = min(model.max_iter, longest)

    DBKSVD.__init__ = begin_short

_short_fits()
del _short_fits
"""
"""What a kernel runs before the first cell: fits end after some iterations."""

SHORTER = {"07_evaluate": {"steps = 400": "steps = 20", '"max_tokens": 8_000': '"max_tokens": 1_000'}}
"""What cells say, and what they say in the test: otherwise every cell runs as it is."""


@pytest.fixture(autouse=True)
def settings_of_its_own(tmp_path, monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    startup = tmp_path / "ipythondir" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "short_fits.py").write_text(SHORT_FITS)


@pytest.mark.filterwarnings("ignore")  # those of the kernel's own machinery
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path):
    missing = [package for package in NEEDS.get(path.stem, ()) if find_spec(package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install -e '.[harvest]'")
    notebook = nbformat.read(path, as_version=4)
    committed = [kinds(cell) for cell in notebook.cells]
    for said, says in SHORTER.get(path.stem, {}).items():
        shorten(notebook, said, says)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=resources, store_widget_state=False
    ).execute()
    assert not [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    assert all(stored <= kinds(cell) for stored, cell in zip(committed, notebook.cells, strict=True))


def shorten(notebook, said, says):
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and said in cell.source)
    cell.source = cell.source.replace(said, says)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def kinds(cell):
    """What the outputs of a cell are: text, figures, HTML."""
    return {kind for output in cell.get("outputs", []) for kind in output.get("data", {output.output_type: None})}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_outputs_that_need_no_kernel(path):
    notebook = nbformat.read(path, as_version=4)
    assert outputs(notebook)
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not any("widget" in kind for cell in notebook.cells for kind in kinds(cell))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_names_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < LARGEST
    assert "/home/" not in text
    assert "/tmp/" not in text


def test_there_are_notebooks():
    assert NOTEBOOKS
