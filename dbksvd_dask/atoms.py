"""What atoms, their labels and their provenance have to be."""

import json
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np

from dbksvd_dask.device import refuse_cupy

UNIT_NORM_TOLERANCE = 1e-3


def check_atoms(atoms: np.ndarray, name: str) -> np.ndarray:
    """(m, d) floats of at least float32, finite, with rows of norm 1 to rounding; or an error that calls them `name`.

    Examples
    --------
    >>> import numpy as np
    >>> check_atoms(np.array([[3.0, 4.0]]), "init")
    Traceback (most recent call last):
    ...
    ValueError: init row 0 has norm 5: atoms have unit norm; divide each row by its norm
    """
    refuse_cupy(atoms, name)
    array = np.asarray(atoms)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise TypeError(f'{name} has dtype {array.dtype}: atoms are floating; convert them with .astype("float32")')
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}: atoms are two-dimensional, (atoms, features), and not empty")
    # A copy, so that what is lazy does not follow later changes of the caller's array.
    array = np.array(array, dtype=np.result_type(array.dtype.newbyteorder("="), np.float32), order="C")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} row {np.flatnonzero(~np.isfinite(array).all(axis=1))[0]} is not finite")
    with np.errstate(over="ignore"):  # infinity is no unit norm either
        norms = np.linalg.norm(array, axis=1)
    wrong = np.flatnonzero(np.abs(norms - 1) > UNIT_NORM_TOLERANCE)
    if wrong.size:
        raise ValueError(
            f"{name} row {wrong[0]} has norm {norms[wrong[0]]:.4g}: atoms have unit norm; divide each row by its norm"
        )
    return array


def check_labels(labels: Mapping[int, str], n_atoms: int) -> dict[int, str]:
    """Labels of atoms in ascending order, or an error that says what is wrong with them.

    Examples
    --------
    >>> check_labels({9: "rivers"}, n_atoms=4)
    Traceback (most recent call last):
    ...
    ValueError: labels has atom 9: the atoms are 0 to 3
    """
    if not isinstance(labels, Mapping):
        raise TypeError(f"labels={labels!r} must be a mapping from atoms to text")
    for atom, text in labels.items():
        if not isinstance(atom, Integral) or isinstance(atom, bool) or not isinstance(text, str):
            raise TypeError(f"labels has {atom!r}: {text!r}, but labels are text, of atoms by their number")
        if not 0 <= atom < n_atoms:
            raise ValueError(f"labels has atom {atom}: the atoms are 0 to {n_atoms - 1}")
        if not text.strip():
            raise ValueError(f"the label of atom {atom} is empty: leave the atom out")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the label of atom {atom}, {text!r}, has half a character: it cannot be kept") from None
    return {int(atom): str(labels[atom]) for atom in sorted(labels)}


def check_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The same as a dict that can be kept as JSON, or an error.

    Examples
    --------
    >>> check_provenance({"learning rate": np.float32(0.1)})
    Traceback (most recent call last):
    ...
    TypeError: provenance cannot be kept as JSON (Object of type float32 is not JSON serializable): ...
    """
    try:
        json.dumps(dict(provenance))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"provenance cannot be kept as JSON ({error}): pass a mapping of text to text, numbers, lists and mappings"
        ) from error
    return dict(provenance)
