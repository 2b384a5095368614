"""The clock that learners are timed by: seconds, CPU seconds of all threads, and peak memory."""

from collections.abc import Callable
from dataclasses import dataclass
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from time import perf_counter

import numpy as np
from scipy.sparse import csr_array

Encode = Callable[[np.ndarray], tuple[csr_array, np.ndarray]]
"""From centred (n, d) rows to a learner's own codes (n, m) and their reconstruction (n, d)."""


@dataclass(frozen=True)
class Snapshot:
    """A dictionary on the way, and what it has cost."""

    n_samples: int
    """Rows seen, again and again ones counted each time."""
    seconds: float
    cpu_seconds: float
    atoms: np.ndarray
    """(m, d), of any norm."""
    encode: Encode


class Clock:
    """Keeps what a learner shows on its way; it is scored when the learner is done."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def start(self) -> None:
        """From here on it counts: packages are imported and kernels compiled before."""
        self.idle_megabytes = _peak_megabytes()
        self._start = perf_counter(), _cpu_seconds()

    def record(self, n_samples: int, atoms: np.ndarray, encode: Encode) -> None:
        """Keep a dictionary, which nobody changes any more, with the time until now."""
        seconds, cpu_seconds = perf_counter() - self._start[0], _cpu_seconds() - self._start[1]
        self.peak_megabytes = _peak_megabytes()
        self.snapshots.append(Snapshot(n_samples, seconds, cpu_seconds, atoms, encode))


def marks(n_samples: int, batch_size: int) -> list[int]:
    """Numbers of samples, whole batches, after which a learner shows its dictionary: ever twice as many, and ¾."""
    shares = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
    return sorted({max(1, round(n_samples * share / batch_size)) * batch_size for share in shares})


def _cpu_seconds() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def _peak_megabytes() -> float:
    return getrusage(RUSAGE_SELF).ru_maxrss / 1024
