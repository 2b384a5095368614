"""Executes the notebooks in place and keeps what is small, and the same in every run, of their outputs.

``python notebooks/execute.py`` executes all of them, ``python notebooks/execute.py 01_quickstart`` one. Widgets are not
stored, nor is the output of cells with the tag "remove-output", which differs from run to run.
"""

import argparse
import re
from pathlib import Path
from time import perf_counter

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def execute(path: Path) -> None:
    """Run a notebook from top to bottom in a kernel of its own, and write it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=resources, store_widget_state=False
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
        if cell.cell_type == "code":
            cell.outputs = kept_outputs(cell, path)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}  # without the version of this one
    path.write_text(with_numbered_ids(nbformat.writes(notebook)) + "\n", encoding="utf-8")


def kept_outputs(cell: nbformat.NotebookNode, path: Path) -> list[nbformat.NotebookNode]:
    """The outputs of a cell that are worth keeping; an error if it wrote to stderr, where warnings go."""
    for output in cell.outputs:
        if output.get("name") == "stderr":
            raise RuntimeError(f"{path.name}, {cell.source.splitlines()[0]!r} wrote to stderr: {output.text}")
    if "remove-output" in cell.metadata.get("tags", []):
        return []
    return [output for output in cell.outputs if WIDGET not in output.get("data", {})]


def with_numbered_ids(text: str) -> str:
    """The same with numbers for the random ids in the HTML of xarray and others."""
    ids: dict[str, str] = {}
    return UUID.sub(lambda found: ids.setdefault(found[0], f"id-{len(ids)}"), text)


def main() -> None:
    """Execute the notebooks named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks without .ipynb; all by default")
    names = parser.parse_args().names or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        started = perf_counter()
        execute(path)
        print(f"{path.name}: {perf_counter() - started:.0f} s, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
