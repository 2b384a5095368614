"""A fit as it goes: errors, speed and coherence, with buttons to pause and to stop it."""

from collections import deque
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from statistics import median
from threading import RLock
from time import monotonic
from typing import Any

import anywidget
import numpy as np
from traitlets import Bool, Bytes, Dict, List, Unicode

from dbksvd_dask.history import COHERENCE_BINS, STAGES, Iteration
from dbksvd_dask.widgets.page import write_page

MAX_POINTS = 1024
"""More points than pixels serve no one; of longer fits every second, fourth, ... iteration is kept."""

SECONDS_BETWEEN_PUSHES = 0.1

FINAL_STATES = frozenset({"finished", "failed"})

_COMMANDS = ("stop", "pause", "resume")
_FIGURES = (
    "iteration",
    "elapsed",
    "n_samples_seen",
    "train_relative_error",
    "validation_relative_error",
    "train_variance_explained",
    "validation_variance_explained",
    "train_l0",
    "validation_l0",
    "n_unused_atoms",
    "seconds",
)
_COLUMNS = (*_FIGURES, *(f"stage {stage}" for stage in STAGES))
_N_RECENT = 10  # iterations that tell the speed; the first, which may have waited for a compiler, is soon forgotten
_STATIC = Path(__file__).parent / "static"


class ConvergenceMonitor(anywidget.AnyWidget):
    """Shows a fit as it goes; `Run.monitor` is one.

    Everything that it shows is in traits that are sent to each view, so one that is opened later shows the whole
    history. Its methods may be called from any thread.

    Parameters
    ----------
    on_command : callable, optional
        Called with "stop", "pause" or "resume" when such a button is pressed, in a thread of the kernel.

    Examples
    --------
    >>> from dbksvd_dask.widgets import ConvergenceMonitor
    >>> monitor = ConvergenceMonitor(on_command=print)
    >>> monitor.begin(60)
    >>> monitor.set_status("running", "compiling the kernels")
    >>> monitor
    <ConvergenceMonitor: running, 0 of 60 iterations>
    """

    _esm = _STATIC / "monitor.js"
    _css = _STATIC / "monitor.css"

    columns = List(Unicode(), list(_COLUMNS)).tag(sync=True)
    points = Bytes(b"").tag(sync=True)
    """(n_points, n_columns) float32, little-endian; NaN where there is no validation."""
    histogram = List([0] * COHERENCE_BINS).tag(sync=True)
    status = Dict().tag(sync=True)
    dashboard = Unicode("").tag(sync=True)
    static = Bool(False).tag(sync=True)
    """Whether it is a page without a kernel, which has no buttons."""

    def __init__(self, on_command: Callable[[str], Any] | None = None) -> None:
        self._on_command = on_command
        self._lock = RLock()
        self._rows = _ThinnedRows()
        self._latest: Iteration | None = None
        self._elapsed = 0.0
        self._recent: deque[tuple[float, int]] = deque(maxlen=_N_RECENT)  # seconds and samples
        self._state, self._message = "starting", ""
        self._n_iterations = self._n_done = 0
        self._next_push = -np.inf
        super().__init__(status=self._status())
        self.on_msg(self._obey)

    def begin(self, n_iterations: int, dashboard: str = "") -> None:
        """Say how many iterations there will be at most, and where Dask's dashboard is.

        Parameters
        ----------
        n_iterations : int
        dashboard : str
            An http or https link; others are not shown.
        """
        with self._lock:
            if self._state not in FINAL_STATES:
                self._n_iterations = n_iterations
                self.dashboard = dashboard
                self._push()

    def add(self, iteration: Iteration) -> None:
        """Show one more iteration: at once, or when a tenth of a second has passed since it showed the one before.

        Parameters
        ----------
        iteration : Iteration
        """
        with self._lock:
            if self._state in FINAL_STATES:
                return
            n_samples = iteration.n_samples_seen - (self._latest.n_samples_seen if self._latest else 0)
            self._recent.append((iteration.seconds, n_samples))
            self._latest = iteration
            self._n_done += 1
            self._elapsed += iteration.seconds
            self._rows.append(iteration, self._elapsed)
            if monotonic() >= self._next_push:
                self._push()

    def set_status(self, state: str, message: str = "") -> None:
        """Show a state, and all iterations up to it, at once; a fit that has ended stays as it is.

        Parameters
        ----------
        state : str
            As `Run.state`.
        message : str
            What else there is to say: what it waits for, why it ended.
        """
        with self._lock:
            if self._state not in FINAL_STATES:
                self._state, self._message = state, message
                self._push()
                if state in FINAL_STATES:
                    self._on_command = None  # nothing is left to command; ipywidgets keeps the monitor, but not the fit

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write what it shows to a page that needs neither kernel nor network.

        Parameters
        ----------
        path : str or path-like

        Examples
        --------
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from dbksvd_dask.widgets import ConvergenceMonitor
        >>> with TemporaryDirectory() as folder:
        ...     ConvergenceMonitor().to_html(Path(folder) / "fit.html")
        """
        with self._lock:
            self._push()
            shown = {name: getattr(self, name) for name in ("columns", "points", "histogram", "status")}
        write_page(path, "DB-KSVD fit", "monitor", {**shown, "dashboard": "", "static": True})

    def __repr__(self) -> str:
        """One line, for where widgets are not shown."""
        return f"<ConvergenceMonitor: {self._state}, {self._n_done} of {self._n_iterations} iterations>"

    def _push(self) -> None:
        """Send what has changed, as one message."""
        with self.hold_sync():
            self.points = self._rows.tobytes()
            if self._latest is not None:
                self.histogram = self._latest.coherence_histogram.tolist()
            self.status = self._status()
        self._next_push = monotonic() + SECONDS_BETWEEN_PUSHES

    def _status(self) -> dict[str, Any]:
        seconds, samples = map(median, zip(*self._recent, strict=True)) if self._recent else (0, 0)
        n_left = 0 if self._state in FINAL_STATES else max(self._n_iterations - self._n_done, 0)
        return {
            "state": self._state,
            "message": self._message,
            "n_iterations": self._n_iterations,
            "n_done": self._n_done,
            "elapsed": self._elapsed,
            "remaining": n_left * seconds if self._recent and n_left else None,
            "samples_per_second": samples / seconds if seconds else None,
        }

    def _obey(self, widget: Any, content: Any, buffers: Any) -> None:
        """Pass on what a button of any view has sent; the lock is free, as the fit waits for it meanwhile."""
        command = content.get("command")
        if command in _COMMANDS and self._on_command is not None:
            self._on_command(command)


class _ThinnedRows:
    """The figures of every iteration, or of every second, fourth, ... one, and of the last one in any case."""

    def __init__(self) -> None:
        self._rows = np.empty((MAX_POINTS + 1, len(_COLUMNS)), "<f4")
        self._n_rows = self._n_added = 0
        self._stride = 1

    def append(self, iteration: Iteration, elapsed: float) -> None:
        if self._n_rows and (self._n_added - 1) % self._stride:
            self._n_rows -= 1  # was there as the last one only
        row = self._rows[self._n_rows]
        row[: len(_FIGURES)] = (
            iteration.iteration,
            elapsed,
            iteration.n_samples_seen,
            iteration.train_relative_error,
            iteration.validation_relative_error,
            iteration.train_variance_explained,
            iteration.validation_variance_explained,
            iteration.train_l0,
            iteration.validation_l0,
            iteration.n_unused_atoms,
            iteration.seconds,
        )
        row[len(_FIGURES) :] = iteration.stage_seconds
        self._n_rows += 1
        self._n_added += 1
        if self._n_rows > MAX_POINTS:  # an odd number, so that the last one stays
            kept = self._rows[: self._n_rows : 2].copy()
            self._n_rows = len(kept)
            self._rows[: self._n_rows] = kept
            self._stride *= 2

    def tobytes(self) -> bytes:
        return self._rows[: self._n_rows].tobytes()
