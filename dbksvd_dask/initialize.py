"""First dictionaries, and directions for atoms that have to start again."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

_ROWS_AT_A_TIME = 1024


def distinct_directions(rows: np.ndarray, count: int, known: np.ndarray | None = None) -> np.ndarray:
    """The first `count` different directions among the rows.

    Parameters
    ----------
    rows : (n, d) floats
        In order of preference; zero rows and rows equal to an earlier one, up to scale and sign, are passed over.
    count : int
    known : (f, d) floats, optional
        Unit rows; rows equal to one of these are passed over, too.

    Returns
    -------
    (≤ count, d) floats
        Unit rows.

    Examples
    --------
    >>> import numpy as np
    >>> distinct_directions(np.array([[0.0, 0.0], [2.0, 0.0], [-3.0, 0.0], [0.0, 4.0]]), count=2)
    array([[1., 0.], [0., 1.]])
    """
    chosen = np.empty((min(count, len(rows)), rows.shape[1]), rows.dtype)
    n_chosen = 0
    seen = set() if known is None else set(_keys(known))
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        directions = _unit_rows(rows[start : start + _ROWS_AT_A_TIME])
        for direction, key in zip(directions, _keys(directions), strict=True):
            if n_chosen < len(chosen) and key not in seen:
                seen.add(key)
                chosen[n_chosen] = direction
                n_chosen += 1
    return chosen[:n_chosen]


def _keys(directions: np.ndarray) -> list[bytes]:
    """The same for unit rows that are equal up to sign and rounding."""
    # Turned so that the largest entry is positive. Rounded, since scaling is not exact.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, np.newaxis], axis=1)
    rounded = np.round(directions * np.sign(largest), decimals=4) + 0.0  # −0 becomes 0
    return [blake2b(row.tobytes(), digest_size=16).digest() for row in rounded]


def random_directions(count: int, n_features: int, dtype: np.dtype, seed: Sequence[int]) -> np.ndarray:
    """Directions spread evenly over the sphere.

    Returns
    -------
    (count, d) floats
        Unit rows.

    Examples
    --------
    >>> import numpy as np
    >>> random_directions(3, 5, np.dtype("float32"), seed=[0]).shape
    (3, 5)
    """
    directions = np.random.default_rng(seed).standard_normal((count, n_features))
    return _unit_rows(directions).astype(dtype)


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows of norm 1, without the zero rows."""
    # Scaled first: the norm of float32 rows of 1e20 would overflow.
    scale = np.abs(rows).max(axis=1, keepdims=True)
    kept = rows[scale[:, 0] > 0] / scale[scale[:, 0] > 0]
    return kept / np.linalg.norm(kept, axis=1, keepdims=True)
