"""Whole numbers that users pass."""

import operator
from typing import Any

import numpy as np


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """The value of an argument as an int.

    Raises
    ------
    TypeError
        If it is no whole number.
    ValueError
        If it is less than `least`.

    Examples
    --------
    >>> import numpy as np
    >>> whole_number("batch_size", np.int64(32))
    32
    >>> whole_number("batch_size", 0)
    Traceback (most recent call last):
    ...
    ValueError: batch_size=0 must be at least 1
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={value!r} is not an integer")
    if number < least:
        raise ValueError(f"{name}={value} must be at least {least}")
    return number
