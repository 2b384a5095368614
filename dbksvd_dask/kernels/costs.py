"""What the stages of a task cost: seconds, and how much memory its process held."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]

from dbksvd_dask.kernels.backend import backend_of

# Not getrusage: the high-water mark there begins with that of the process which started this one.
_HAS_STATUS = os.path.exists("/proc/self/status")
_LONGEST_STATUS = 8192


@dataclass(frozen=True, eq=False)
class StageCosts:
    """Costs by stage, which tasks add to what they hand on.

    Examples
    --------
    >>> costs = StageCosts()
    >>> with costs.stage("update"):
    ...     ones = bytearray(b"1") * 2**20
    >>> costs.peak_memory["update"] > 2**20
    True
    >>> sorted((costs + StageCosts({"gram": 2.0})).seconds)
    ['gram', 'update']
    """

    seconds: dict[str, float] = field(default_factory=dict)
    """Summed over tasks."""
    peak_memory: dict[str, int] = field(default_factory=dict)
    """Bytes: the largest of any process, or of any device where that computed."""

    _marks: list[int] = field(default_factory=lambda: [memory_of_process().peak], init=False, repr=False)
    """The high-water mark of the process when a stage ended, the last one; at first, when this record was made."""

    @contextmanager
    def stage(self, name: str, on: Any = None) -> Iterator[None]:
        """Add what the code inside costs, to a record that the same task has made.

        Memory is what the process holds when the stage ends; or its high-water mark, where that has risen meanwhile, so
        that arrays which were there for a moment only are not missed. What came and went below an earlier high-water
        mark is not seen, nor what did between tasks: a matrix that arrives from another worker is there twice.

        On a device a stage ends when the device is done, and memory is what is taken there then.

        Parameters
        ----------
        name : str
        on : array, optional
            One of those that the code inside computes with: on the host, or on a device.
        """
        ops = backend_of(on)
        start = ops.clock()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + ops.clock() - start
        resident, peak = ops.memory()
        held = peak if peak > self._marks[0] else resident
        self.peak_memory[name] = max(self.peak_memory.get(name, 0), held)
        self._marks[0] = peak

    def __add__(self, other: "StageCosts") -> "StageCosts":
        """Seconds of both, and the larger memory."""
        seconds, memory = self.seconds.copy(), self.peak_memory.copy()
        for name, more in other.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + more
        for name, peak in other.peak_memory.items():
            memory[name] = max(memory.get(name, 0), peak)
        return StageCosts(seconds, memory)

    def as_stage(self, name: str) -> "StageCosts":
        """All of them as those of one stage."""
        return StageCosts({name: sum(self.seconds.values())}, {name: max(self.peak_memory.values(), default=0)})


class ProcessMemory(NamedTuple):
    """Bytes of memory of this process."""

    resident: int
    """Now."""
    peak: int
    """At most, since it began; where the system does not tell, now."""


def memory_of_process() -> ProcessMemory:
    """What this process holds, and has held."""
    if not _HAS_STATUS:
        return ProcessMemory(*[int(psutil.Process().memory_info().rss)] * 2)
    status = os.pread(_status_file(os.getpid()), _LONGEST_STATUS, 0)
    _, peak, _, _, resident, *_ = status[status.index(b"VmHWM:") :].split(maxsplit=5)
    return ProcessMemory(int(resident) * 1024, int(peak) * 1024)


@cache
def _status_file(pid: int) -> int:  # one that was forked has a file of its own
    """The file, kept open: opening it would take as long as reading it."""
    return os.open("/proc/self/status", os.O_RDONLY)
