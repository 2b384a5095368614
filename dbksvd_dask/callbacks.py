"""What watches a fit: the callback protocol, and the callbacks that come with it.

A callback is anything that can be called as ``callback(model, iteration)`` after each iteration, with the fitted
`DBKSVD` and the `Iteration` that has just ended; it may return True to end the fit. One that needs to know when a fit
begins and ends derives from `Callback`.
"""

from collections.abc import Sequence
from numbers import Integral, Real
from time import monotonic
from typing import Any

import numpy as np

from dbksvd_dask.history import Iteration


class Callback:
    """Does nothing; to derive from.

    Examples
    --------
    >>> import numpy as np
    >>> from dbksvd_dask import Callback, DBKSVD
    >>> class Say(Callback):
    ...     def begin(self, model, n_iterations):
    ...         print("at most", n_iterations, "iterations")
    ...
    ...     def __call__(self, model, iteration):
    ...         return iteration.train_l0 <= 2
    >>> Y = np.random.default_rng(0).standard_normal((200, 8))
    >>> DBKSVD(16, 2, callbacks=[Say()]).fit(Y).stopped_by_
    at most 40 iterations
    'Say'
    """

    def begin(self, model: Any, n_iterations: int) -> None:
        """Before the first iteration: the model, with its first dictionary, and how many iterations there will be."""

    def catch_up(self, model: Any, iterations: Sequence[Iteration]) -> bool | None:
        """After `begin` where a fit is resumed: the iterations before, counted there, too; True ends the fit."""

    def __call__(self, model: Any, iteration: Iteration) -> bool | None:
        """After each iteration; True ends the fit."""

    def end(self, model: Any) -> None:
        """After the last iteration, also when the fit was interrupted or has failed."""


class StopOnPlateau(Callback):
    """Ends the fit when the validation error, or without validation the training error, no longer falls.

    Parameters
    ----------
    patience : int
        Iterations in a row that may bring less than `tolerance`.
    tolerance : float
        Relative improvement of the best error that counts.

    Examples
    --------
    >>> import numpy as np
    >>> from dbksvd_dask import DBKSVD, StopOnPlateau
    >>> Y = np.random.default_rng(0).standard_normal((200, 8))
    >>> model = DBKSVD(16, 2, max_iter=100, random_state=0, callbacks=[StopOnPlateau(patience=2)])
    >>> model.fit(Y[:150], validation=Y[150:]).n_iter_ < 100
    True
    """

    def __init__(self, patience: int = 3, tolerance: float = 1e-3) -> None:
        if not isinstance(patience, Integral) or patience < 1:
            raise ValueError(f"patience={patience!r} must be a whole number of at least 1")
        if not isinstance(tolerance, Real) or not 0 <= tolerance < 1:
            raise ValueError(f"tolerance={tolerance!r} must be a number from 0 to below 1")
        self.patience: int = patience
        self.tolerance: float = tolerance

    def begin(self, model: Any, n_iterations: int) -> None:
        """Forget the fit before."""
        self._best = np.inf
        self._waited = 0

    def catch_up(self, model: Any, iterations: Sequence[Iteration]) -> bool:
        """Wait as long as if it had seen them."""
        asks = False
        for iteration in iterations:
            asks = self(model, iteration)
        return asks

    def __call__(self, model: Any, iteration: Iteration) -> bool:
        """True after `patience` iterations without improvement."""
        error = iteration.validation_relative_error
        if np.isnan(error):
            error = iteration.train_relative_error
        improved = error < self._best * (1 - self.tolerance)
        self._best = min(self._best, error)
        self._waited = 0 if improved else self._waited + 1
        return self._waited >= self.patience


class TimeBudget(Callback):
    """Ends the fit with the first iteration that ends after so many seconds.

    Parameters
    ----------
    seconds : float

    Examples
    --------
    >>> import numpy as np
    >>> from dbksvd_dask import DBKSVD, TimeBudget
    >>> Y = np.random.default_rng(0).standard_normal((200, 8))
    >>> DBKSVD(16, 2, max_iter=10**6, callbacks=[TimeBudget(seconds=0.01)]).fit(Y).stopped_by_
    'TimeBudget'
    """

    def __init__(self, seconds: float) -> None:
        if not isinstance(seconds, Real) or not seconds >= 0:
            raise ValueError(f"seconds={seconds!r} must be a number of at least 0")
        self.seconds: float = seconds

    def begin(self, model: Any, n_iterations: int) -> None:
        """Start the clock."""
        self._deadline = monotonic() + self.seconds

    def __call__(self, model: Any, iteration: Iteration) -> bool:
        """True once the time is up."""
        return monotonic() >= self._deadline


class ProgressBar(Callback):
    """A progress bar with the figures of the last iteration, in a terminal or a notebook (tqdm).

    Examples
    --------
    >>> from dbksvd_dask import DBKSVD, ProgressBar
    >>> model = DBKSVD(1024, 20, callbacks=[ProgressBar()])
    """

    def begin(self, model: Any, n_iterations: int) -> None:
        """Show the bar."""
        from tqdm.auto import tqdm  # warns in a notebook without ipywidgets, whoever imports it

        self._bar = tqdm(total=n_iterations, unit="iteration", desc="kernels are compiled at first use")

    def catch_up(self, model: Any, iterations: Sequence[Iteration]) -> None:
        """Begin where the fit has ended."""
        self._bar.initial = self._bar.n = len(iterations)

    def __call__(self, model: Any, iteration: Iteration) -> None:
        """Advance the bar."""
        self._bar.set_description("", refresh=False)
        figures = {"error": f"{iteration.train_relative_error:.4f}"}
        if not np.isnan(iteration.validation_relative_error):
            figures["validation"] = f"{iteration.validation_relative_error:.4f}"
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update()

    def end(self, model: Any) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: the bar holds an open file, with which the model could not be copied."""
        return {}
