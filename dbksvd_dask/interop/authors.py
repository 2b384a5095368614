"""Dictionaries as the authors of DB-KSVD keep them: ``.npy`` files with atoms as columns."""

import os
from pathlib import Path
from typing import Literal

import numpy as np

from dbksvd_dask.atoms import UNIT_NORM_TOLERANCE
from dbksvd_dask.dictionary import Dictionary
from dbksvd_dask.embeddings.checks import dtype_error, is_floating


def from_npy(
    path: str | os.PathLike[str],
    n_nonzero_coefs: int | None = None,
    *,
    atoms: Literal["rows", "columns"] | None = None,
    mean: np.ndarray | None = None,
) -> Dictionary:
    """A dictionary from a ``.npy`` file, with atoms as rows or, as in the authors' files, as columns (d x m).

    Parameters
    ----------
    path : path
        Local file.
    n_nonzero_coefs : int, optional
        k, which the file does not hold.
    atoms : "rows" or "columns", optional
        Where the atoms are; found by their unit norm where it is not told.
    mean : (d,) floats, optional
        What was taken from the embeddings, which the file does not hold either.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is cut off or holds Python objects, if neither rows nor columns have unit norm, or if both have and
        `atoms` does not tell which are meant.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/dictionary.npy", np.array([[0.6, 0.0, 1.0], [0.8, 1.0, 0.0]]))
    ...     from_npy(f"{folder}/dictionary.npy", n_nonzero_coefs=1)
    <Dictionary: 3 atoms x 2 features, float64, k=1>
    """
    if atoms not in (None, "rows", "columns"):
        raise ValueError(f'atoms={atoms!r} is unknown: choose "rows" or "columns", or leave it out')
    file = Path(path).expanduser()
    array = _read(file)
    found = _unit_norm(array)
    if atoms is None and len(found) != 1:
        problem = "both its rows and its columns" if found else "neither its rows nor its columns"
        fix = 'say which are meant, atoms="rows" or atoms="columns"' if found else "divide each atom by its norm"
        raise ValueError(f"{file} has shape {array.shape}, and {problem} have unit norm: {fix}")
    chosen = atoms or found[0]
    if chosen not in found:
        raise ValueError(f"the {chosen} of {file}, shape {array.shape}, have no unit norm{_hint(found)}")
    provenance = {"imported from": file.name, "atoms were": chosen}
    return Dictionary(array if chosen == "rows" else array.T, n_nonzero_coefs, mean=mean, provenance=provenance)


def _read(file: Path) -> np.ndarray:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        with file.open("rb") as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is not a readable .npy file: {error}") from error
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{file} has shape {array.shape}: a dictionary has two dimensions, and is not empty")
    if not is_floating(array.dtype):
        raise dtype_error(array.dtype, str(file))
    return array


def _unit_norm(array: np.ndarray) -> list[Literal["rows", "columns"]]:
    wide = array.astype(np.float64)
    axes: dict[Literal["rows", "columns"], int] = {"rows": 1, "columns": 0}
    return [
        name
        for name, axis in axes.items()
        if (np.abs(np.linalg.norm(wide, axis=axis) - 1) <= UNIT_NORM_TOLERANCE).all()
    ]


def _hint(found: list[Literal["rows", "columns"]]) -> str:
    return f', but its {found[0]} have: pass atoms="{found[0]}"' if found else ": divide each atom by its norm"
