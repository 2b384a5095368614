"""Settings that belong to the whole process, and are made while anybody is inside."""

from collections.abc import Callable
from contextlib import ContextDecorator
from threading import Lock
from typing import Any


class SharedSetting(ContextDecorator):
    """A context manager and decorator: the first one in makes a setting, the last one out puts back what was before.

    If everybody saved and restored it for themselves, those who overlap would restore each other's setting and leave it
    for ever.

    Parameters
    ----------
    make : callable
        Makes the setting, and returns what undoes it.

    Examples
    --------
    >>> colour = ["red"]
    >>> def paint():
    ...     before, colour[0] = colour[0], "blue"
    ...     return lambda: colour.__setitem__(0, before)
    >>> blue = SharedSetting(paint)
    >>> with blue, blue:
    ...     print(colour)
    ['blue']
    >>> colour
    ['red']
    """

    def __init__(self, make: Callable[[], Callable[[], Any]]) -> None:
        self._make = make
        self._lock = Lock()
        self._n_inside = 0

    def __enter__(self) -> None:
        """Make the setting, if nobody is inside yet."""
        with self._lock:
            if self._n_inside == 0:
                self._undo = self._make()
            self._n_inside += 1

    def __exit__(self, *error: object) -> None:
        """Put back what was before, if nobody else is inside."""
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._undo()
