"""Warnings that name the line from which this package was called."""

import sys
import warnings


def warn_caller(message: str) -> None:
    """Warn the caller of this package, however deep in it the reason was found."""
    level, frame, package = 1, sys._getframe(), __name__.partition(".")[0]
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)  # in the first frame outside
