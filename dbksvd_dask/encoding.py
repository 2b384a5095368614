"""Sparse encoding as Dask tasks: the dictionary and its Gram matrix once, then one task a chunk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from dask.base import get_scheduler
from dask.delayed import Delayed, delayed

from dbksvd_dask.kernels import chunk as kernels
from dbksvd_dask.kernels.blas import single_threaded
from dbksvd_dask.kernels.chunk import Codes, Encoding, Pursuit, timed
from dbksvd_dask.kernels.gram import assemble_gram, gram_panel, panel_starts
from dbksvd_dask.metrics import ErrorSums, atom_usage

FAN_IN = 4
"""Parts that one task of a tree sum adds up."""


class SharedDictionary(NamedTuple):
    """What every encoding task of one graph takes, as arguments for tasks."""

    atoms: Any
    """(m, d) floats."""
    mean: Any
    """(d,) floats taken from the rows first, or None."""
    gram: Any
    """(m, m) floats: ``D Dᵀ``."""
    coherence: Any
    """(m,) floats: the largest ``|⟨d_i, d_j⟩|`` of each atom with any other."""
    gram_seconds: Any
    """Task seconds that the Gram matrix took, by stage."""


@dataclass(frozen=True)
class EncodingStatistics:
    """What the codes of a chunk add to the metrics; statistics of chunks add up."""

    errors: ErrorSums
    usage: np.ndarray
    """(m,) int64: samples that use each atom."""
    seconds: dict[str, float]
    """Task seconds by stage."""

    @classmethod
    def of(cls, encoding: Encoding, n_atoms: int) -> "EncodingStatistics":
        """Statistics of one chunk."""
        chunk = encoding.chunk
        with timed(encoding.seconds, "statistics"):
            errors = ErrorSums.from_parts(encoding.squared_norms, encoding.moments, chunk.residual)
            usage = atom_usage(chunk.indices, n_atoms)
        return cls(errors, usage, encoding.seconds)

    def __add__(self, other: "EncodingStatistics") -> "EncodingStatistics":
        """Statistics of both."""
        return EncodingStatistics(
            self.errors + other.errors, self.usage + other.usage, add_seconds(self.seconds, other.seconds)
        )

    @property
    def n_unused(self) -> int:
        """Atoms that no sample uses."""
        return int(np.count_nonzero(self.usage == 0))

    @property
    def l0(self) -> float:
        """Mean number of atoms a sample uses."""
        return float(self.usage.sum() / self.errors.n_samples)


def add_seconds(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """Task seconds by stage of both."""
    return {stage: first.get(stage, 0.0) + second.get(stage, 0.0) for stage in first | second}


def task(function: Callable, *arguments: Any, outputs: int | None = None) -> Any:
    """``function(*arguments)`` as a Dask task; a tuple of tasks where it returns a tuple of `outputs`.

    Keys are unique, so that a cluster never takes a task of one iteration for that of another.
    """
    name = function.__name__.strip("_").replace("_", "-")
    result = delayed(function, pure=False, traverse=False, nout=outputs)(
        *arguments, dask_key_name=f"{name}-{uuid4().hex}"
    )
    return result if outputs is None else tuple(result)


def share(value: Any) -> Any:
    """One copy of an array for all tasks of a graph: something that tasks take as an argument.

    On a cluster it is sent there once, beside the graph; inside the graph it would pass through the scheduler with it.
    """
    client = getattr(get_scheduler(), "__self__", None)
    if client is not None:
        return client.scatter(value, hash=False)
    return delayed(value, pure=False, traverse=False)


def share_dictionary(atoms: np.ndarray | Delayed, mean: np.ndarray | None, n_atoms: int) -> SharedDictionary:
    """A dictionary for all tasks of a graph, with its Gram matrix as a task of that graph.

    Parameters
    ----------
    atoms : (m, d) floats, or the task that makes them
    mean : (d,) floats or None
    n_atoms : int
        m.
    """
    shared = atoms if isinstance(atoms, Delayed) else share(atoms)
    panels = [task(_gram_panel, shared, start) for start in panel_starts(n_atoms)]
    gram, coherence, seconds = task(_assemble_gram, panels, outputs=3)
    return SharedDictionary(shared, mean, gram, coherence, seconds)


@single_threaded()
def _gram_panel(atoms: np.ndarray, start: int) -> tuple[np.ndarray, dict[str, float]]:
    seconds: dict[str, float] = {}
    with timed(seconds, "gram"):
        panel = gram_panel(atoms, start)
    return panel, seconds


def _assemble_gram(
    panels: list[tuple[np.ndarray, dict[str, float]]],
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    seconds = reduce(add_seconds, (panel_seconds for _, panel_seconds in panels))
    with timed(seconds, "gram"):
        gram, coherence = assemble_gram([panel for panel, _ in panels])
    return gram, coherence, seconds


def tree_sum(parts: Sequence[Delayed]) -> Delayed:
    """Sum over chunks as a tree of fixed shape in chunk order: the same bits on any number of workers."""
    while len(parts) > 1:
        parts = [task(_sum_in_order, list(parts[i : i + FAN_IN])) for i in range(0, len(parts), FAN_IN)]
    return parts[0]


def _sum_in_order(parts: list[Any]) -> Any:
    return reduce(add, parts)


def encode_chunk(rows: Any, dictionary: SharedDictionary, pursuit: Pursuit) -> tuple[Delayed, Delayed]:
    """Indices and values of one chunk, as tasks: (n, k) int32 and (n, k) floats."""
    return task(_encode, rows, *dictionary[:3], pursuit, outputs=2)


@single_threaded()
def _encode(rows: Any, atoms: np.ndarray, mean: np.ndarray | None, gram: np.ndarray, pursuit: Pursuit) -> Codes:
    return kernels.encode(rows, atoms, gram, mean, pursuit)


def evaluate_chunks(chunks: Sequence[Any], dictionary: SharedDictionary, pursuit: Pursuit) -> Delayed:
    """`EncodingStatistics` of all chunks together, as a task."""
    return tree_sum([task(_evaluate, rows, *dictionary[:3], pursuit) for rows in chunks])


@single_threaded()
def _evaluate(
    rows: Any, atoms: np.ndarray, mean: np.ndarray | None, gram: np.ndarray, pursuit: Pursuit
) -> EncodingStatistics:
    return EncodingStatistics.of(kernels.encode_with_residual(rows, atoms, gram, mean, pursuit), len(atoms))
