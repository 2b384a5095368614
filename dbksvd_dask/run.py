"""A fit in the background: how it goes, and how to stop, pause and await it."""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from importlib.util import find_spec
from numbers import Real
from threading import TIMEOUT_MAX, Event, RLock, Thread
from typing import TYPE_CHECKING, Any, Literal

from numba.core import event

from dbksvd_dask.callbacks import Callback, ProgressBar
from dbksvd_dask.graph import active_client
from dbksvd_dask.history import Iteration
from dbksvd_dask.jupyter_kernel import answer_widgets, in_notebook
from dbksvd_dask.reprs import run_html

if TYPE_CHECKING:
    from dbksvd_dask.estimator import DBKSVD
    from dbksvd_dask.widgets import ConvergenceMonitor

SECONDS_BETWEEN_CLICKS = 0.05
"""How often an awaited run looks whether a button was pressed."""

logger = logging.getLogger(__name__)

_COMPILING = "compiling the kernels, which are then kept on disk"
_ENDS = {"max_iter": "all iterations are done", "stop": "stopped by hand"}


class Run:
    """A fit that goes on in a background thread; made by `DBKSVD.fit_async`.

    From the first iteration on the model can be used while it is being fitted. The thread does not keep Python alive: a
    script has to `wait`, or the fit ends with it.

    Parameters
    ----------
    model : DBKSVD
        What is fitted.
    fit : callable
        Fits the model, and is given callbacks to call before the model's own, and others to call after these.

    Attributes
    ----------
    model : DBKSVD
    n_iterations : int
        Most iterations that there will be; 0 until the first one begins.
    message : str
        What else there is to say: that kernels are compiled, why it has ended, what was raised.

    Examples
    --------
    >>> import numpy as np
    >>> from dbksvd_dask import DBKSVD
    >>> Y = np.random.default_rng(0).standard_normal((500, 8))
    >>> run = DBKSVD(12, 3, max_iter=5, random_state=0).fit_async(Y)
    >>> run.wait().components_.shape
    (12, 8)
    >>> run
    <Run: finished, 5 of 5 iterations>
    """

    def __init__(self, model: "DBKSVD", fit: Callable[[Sequence[Callback], Sequence[Callback]], Any]) -> None:
        self.model = model
        self.n_iterations = 0
        self._iterations: list[Iteration] = []
        self._is_stopped = self._waits = False
        self._may_go_on = Event()
        self._may_go_on.set()
        self._outcome: Literal["finished", "failed"] | None = None
        self.message = ""
        self._dashboard: str = getattr(active_client(), "dashboard_link", None) or ""
        self._monitor: ConvergenceMonitor | None = None
        self._lock = RLock()  # what the monitor is told is told in order
        self._future: Future[DBKSVD] = Future()
        if in_notebook() and find_spec("anywidget"):
            from IPython.display import display

            display(self.monitor)
        context = contextvars.copy_context()  # holds which Dask client is the current one
        Thread(target=context.run, args=(self._run, fit), name="dbksvd-fit", daemon=True).start()

    @property
    def n_done(self) -> int:
        """Iterations that have ended."""
        return len(self._iterations)

    @property
    def state(self) -> Literal["starting", "running", "pausing", "paused", "stopping", "finished", "failed"]:
        """What it does; "pausing" and "stopping" until the running iteration has ended."""
        if self._outcome is not None:
            return self._outcome
        if self._is_stopped:
            return "stopping"
        if not self._may_go_on.is_set():
            return "paused" if self._waits else "pausing"
        return "running" if self.n_iterations else "starting"

    def done(self) -> bool:
        """Whether the fit has ended, be it well or by an error.

        Examples
        --------
        >>> import numpy as np
        >>> from dbksvd_dask import DBKSVD
        >>> run = DBKSVD(12, 3, max_iter=2).fit_async(np.random.default_rng(0).standard_normal((500, 8)))
        >>> run.wait() is run.model, run.done()
        (True, True)
        """
        return self._future.done()

    def stop(self) -> None:
        """End the fit after the running iteration; the model is then fitted and usable.

        Examples
        --------
        >>> import numpy as np
        >>> from dbksvd_dask import DBKSVD
        >>> run = DBKSVD(12, 3, max_iter=10**6).fit_async(np.random.default_rng(0).standard_normal((500, 8)))
        >>> run.stop()
        >>> run.wait().stopped_by_
        'stop'
        """
        with self._lock:
            self._is_stopped = True
            self._may_go_on.set()
            self._tell()

    def pause(self) -> None:
        """Wait after the running iteration, until `resume` or `stop`; the model can be used meanwhile.

        Examples
        --------
        >>> import numpy as np
        >>> from dbksvd_dask import DBKSVD
        >>> run = DBKSVD(12, 3, max_iter=10**6).fit_async(np.random.default_rng(0).standard_normal((500, 8)))
        >>> run.pause(), run.resume(), run.stop()
        (None, None, None)
        """
        with self._lock:
            if not self._is_stopped and self._outcome is None:
                self._may_go_on.clear()
                self._tell()

    def resume(self) -> None:
        """Go on after `pause`; see there."""
        with self._lock:
            self._may_go_on.set()
            self._tell()

    def wait(self, timeout: float | None = None) -> "DBKSVD":
        """Wait until the fit has ended. In a notebook rather `await` the run: its buttons work meanwhile.

        Kernel → Interrupt (Ctrl-C) ends the waiting, and not the fit.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Returns
        -------
        DBKSVD
            The fitted model.

        Raises
        ------
        TimeoutError
            If the fit goes on for longer.
        Exception
            Whatever the fit has raised.

        Examples
        --------
        >>> import numpy as np
        >>> from dbksvd_dask import DBKSVD
        >>> DBKSVD(12, 3, max_iter=2).fit_async(np.ones((500, 8), int)).wait()
        Traceback (most recent call last):
        ...
        TypeError: the numpy ndarray has dtype int64: embeddings are float16, ...
        """
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, Real) or not timeout >= 0):
            raise ValueError(f"timeout={timeout!r} must be a number of seconds of at least 0, or None")
        try:
            return self._future.result(None if timeout is None else min(timeout, TIMEOUT_MAX))
        except TimeoutError:
            if self.done():  # the fit itself has raised it
                raise
            raise TimeoutError(f"after {timeout} s the fit goes on ({self!r}): wait longer, or call stop()") from None

    def __await__(self) -> Generator[Any, None, "DBKSVD"]:
        """The fitted model, when the fit has ended; raises what it has raised."""
        return self._awaited().__await__()

    async def _awaited(self) -> "DBKSVD":
        while not self.done():
            await answer_widgets()
            await asyncio.sleep(SECONDS_BETWEEN_CLICKS)
        return self._future.result()

    @property
    def monitor(self) -> "ConvergenceMonitor":
        """The widget that shows the whole history and goes on with it; needs the extra "notebook"."""
        with self._lock:
            if self._monitor is None:
                from dbksvd_dask.widgets import ConvergenceMonitor

                self._monitor = ConvergenceMonitor(self._obey)
                if self.n_iterations:
                    self._monitor.begin(self.n_iterations, self._dashboard)
                for iteration in self._iterations:
                    self._monitor.add(iteration)
                self._tell()
            return self._monitor

    def __repr__(self) -> str:
        """One line: state and iterations."""
        return f"<Run: {self.state}, {self.n_done} of {self.n_iterations or self.model.max_iter} iterations>"

    def _repr_html_(self) -> str:
        return run_html(self)

    def _obey(self, command: str) -> None:
        """Do what a button of the monitor says."""
        {"stop": self.stop, "pause": self.pause, "resume": self.resume}[command]()

    def _run(self, fit: Callable[[Sequence[Callback], Sequence[Callback]], Any]) -> None:
        """In the thread: fit, and say how it ended."""
        bar = [] if self._monitor is not None or self._has_bar() else [ProgressBar()]
        try:
            with event.install_listener("numba:compile", _CompileListener(self)):
                fit([_Reporter(self), *bar], [_Brake(self)])
        except BaseException as error:
            self._finish("failed", f"{type(error).__name__}: {error}")
            if self._monitor is None:
                logger.error("the fit has failed: %s: %s", type(error).__name__, error)
            self._future.set_exception(error)
        else:
            ended_by = str(self.model.stopped_by_)
            self._finish("finished", _ENDS.get(ended_by, f"ended by {ended_by}"))
            self._future.set_result(self.model)

    def _has_bar(self) -> bool:
        callbacks = self.model.callbacks  # which the fit has not looked at yet
        return isinstance(callbacks, list | tuple) and any(isinstance(callback, ProgressBar) for callback in callbacks)

    def _begin(self, n_iterations: int) -> None:
        with self._lock:
            self.n_iterations = n_iterations
            self._show("begin", n_iterations, self._dashboard)
            self._tell()

    def _note(self, iteration: Iteration) -> None:
        with self._lock:
            self._iterations.append(iteration)
            self._show("add", iteration)
            if self.message:
                self.message = ""
                self._tell()

    def _stay(self) -> None:
        """Stay here while the run is paused."""
        if not self._may_go_on.is_set():
            with self._lock:
                self._waits = True
                self._tell()
            self._may_go_on.wait()
            with self._lock:
                self._waits = False
                self._tell()

    def _finish(self, outcome: Literal["finished", "failed"], message: str) -> None:
        with self._lock:
            self._outcome, self.message = outcome, message
            self._tell()

    def _tell(self) -> None:
        self._show("set_status", self.state, self.message)

    def _show(self, method: str, *arguments: Any) -> None:
        """Have the monitor do it. A browser that goes away must not end the fit."""
        if self._monitor is not None:
            try:
                getattr(self._monitor, method)(*arguments)
            except Exception:
                logger.exception("the monitor has failed; the fit goes on")


class _Reporter(Callback):
    """Tells a run of each iteration."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def begin(self, model: "DBKSVD", n_iterations: int) -> None:
        """The run has begun."""
        self._run._begin(n_iterations)

    def catch_up(self, model: "DBKSVD", iterations: Sequence[Iteration]) -> None:
        """A resumed run has come so far before."""
        for iteration in iterations:
            self._run._note(iteration)

    def __call__(self, model: "DBKSVD", iteration: Iteration) -> None:
        """An iteration has ended."""
        self._run._note(iteration)


class _Brake(Callback):
    """Has the fit wait while the run is paused, and ends it when the run is stopped."""

    __name__ = "stop"  # what `stopped_by_` says

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, model: "DBKSVD", iteration: Iteration) -> bool:
        """Wait, and say whether to end."""
        self._run._stay()
        return self._run._is_stopped


class _CompileListener(event.Listener):
    """Says that kernels are being compiled, which makes a first iteration long."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def on_start(self, event: event.Event) -> None:
        """Some function begins to be compiled."""
        with self._run._lock:
            is_ours = event.data["dispatcher"].py_func.__module__.startswith("dbksvd_dask.")
            if is_ours and self._run._outcome is None and self._run.message != _COMPILING:
                self._run.message = _COMPILING
                self._run._tell()

    def on_end(self, event: event.Event) -> None:
        """It has been: the next iteration takes the message away."""
