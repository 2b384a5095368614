"""Whether the rows of an array are the samples or the features."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, TypeAlias, get_args

from dbksvd_dask.warning import warn_caller

Orientation: TypeAlias = Literal["samples", "features"]

MOST_FEATURES = 2**16
"""No model has hidden states of more; an array with more columns, and no more rows than these, is features by rows."""


def check_orientation(orientation: str | None) -> None:
    """Raise unless it is None or one of the two there are."""
    if orientation is not None and orientation not in get_args(Orientation):
        raise ValueError(
            f"orientation={orientation!r} is neither 'samples' nor 'features': say what the rows are, "
            "or leave it out, and shape and names of dimensions tell"
        )


def rows_are_features(
    shape: tuple[int, ...], dims: Sequence[Hashable], orientation: Orientation | None, where: str
) -> bool:
    """Whether the first of two dimensions is the features.

    Parameters
    ----------
    shape : tuple of two int
    dims : sequence of two names
    orientation : "samples", "features" or None
        What the user says that the rows are. None: the names of the dimensions tell, or else the shape.
    where : str
        What the warning calls the array.

    Warns
    -----
    UserWarning
        If only the shape says so.

    Examples
    --------
    >>> rows_are_features((384, 5000), ("dim_0", "dim_1"), "features", "the array")
    True
    >>> rows_are_features((384, 5000), ("feature", "sample"), None, "the array")
    True
    >>> rows_are_features((384, 5000), ("dim_0", "dim_1"), None, "the array")
    False
    """
    if orientation is not None:
        return orientation == "features"
    if dims[0] == "feature" or dims[1] == "sample":
        return True
    named = dims[0] == "sample" or dims[1] == "feature"
    if named or not shape[0] <= MOST_FEATURES < shape[1]:
        return False
    warn_caller(
        f"{where} has shape {shape}: embeddings of {shape[1]} features there are not, so its {shape[0]} rows are taken "
        "for the features; say orientation='features', or orientation='samples' if they are the samples after all"
    )
    return True
