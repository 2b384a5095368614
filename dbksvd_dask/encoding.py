"""Sparse encoding as Dask tasks: the dictionary and its Gram matrix once, then one task a chunk."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import numpy as np
from dask.delayed import Delayed

from dbksvd_dask.batches import ROWS_PER_TASK
from dbksvd_dask.computing import computing
from dbksvd_dask.graph import Lazy, delayed_of, homes, task, tree_sum
from dbksvd_dask.kernels import chunk as kernels
from dbksvd_dask.kernels.backend import backend_of, placed, to_host
from dbksvd_dask.kernels.chunk import Codes, Encoding
from dbksvd_dask.kernels.costs import StageCosts
from dbksvd_dask.kernels.gram import Panel, assemble_gram, gram_panel, panel_starts, panels_coherence
from dbksvd_dask.kernels.pursuit import Pursuit
from dbksvd_dask.kernels.transfer import Transferable
from dbksvd_dask.metrics import ErrorSums, atom_usage


class SharedDictionary(NamedTuple):
    """What every encoding task of one graph takes, as arguments for tasks."""

    atoms: Any
    """`AtomVectors`: the (m, d) atoms."""
    mean: Any
    """(d,) floats taken from the rows first, or None."""
    gram: Any
    """`Gram`."""
    coherence: Any
    """(m,) floats: the largest ``|⟨d_i, d_j⟩|`` of each atom with any other."""
    near: Any
    """(pairs, 2) integers: atoms i < j with ``|⟨d_i, d_j⟩|`` above `max_coherence`."""
    gram_costs: Any
    """`StageCosts` of the Gram matrix."""


@dataclass(frozen=True, eq=False)
class AtomVectors(Transferable):
    """One vector for each atom, of all or of an inner batch, and what it took."""

    vectors: np.ndarray
    """(w, d) floats."""
    costs: StageCosts = field(default_factory=StageCosts)

    def __add__(self, other: "AtomVectors") -> "AtomVectors":
        """Sum over two sets of chunks."""
        costs = self.costs + other.costs
        with costs.stage("update", self.vectors):
            vectors = self.vectors + other.vectors
        return AtomVectors(vectors, costs)

    def __iadd__(self, other: "AtomVectors") -> "AtomVectors":
        """The same, in this one's array."""
        costs = self.costs + other.costs
        with costs.stage("update", self.vectors):
            vectors = np.add(self.vectors, other.vectors, out=self.vectors)
        return AtomVectors(vectors, costs)


@dataclass(frozen=True, eq=False)
class Gram(Transferable):
    """``D Dᵀ``, and what it took."""

    blocks: tuple[np.ndarray, ...]
    """(m_g, m_g) floats for each group of atoms; one for all of them where there are no groups."""
    coherence: np.ndarray
    """(m,) floats; NumPy, as what is near."""
    near: np.ndarray
    """(pairs, 2) integers."""
    costs: StageCosts


@dataclass(frozen=True)
class EncodingStatistics:
    """What the codes of a chunk add to the metrics; statistics of chunks add up."""

    errors: ErrorSums
    usage: np.ndarray
    """(m,) int64: samples that use each atom."""
    costs: StageCosts

    @classmethod
    def of(cls, encoding: Encoding, n_atoms: int) -> "EncodingStatistics":
        """Statistics of one chunk."""
        chunk = encoding.chunk
        with encoding.costs.stage("statistics", chunk.residual):
            errors = ErrorSums.from_parts(encoding.squared_norms, encoding.moments, chunk.residual)
            usage = atom_usage(chunk.indices, n_atoms)
        return cls(errors, usage, encoding.costs)

    def __add__(self, other: "EncodingStatistics") -> "EncodingStatistics":
        """Statistics of both."""
        return EncodingStatistics(self.errors + other.errors, self.usage + other.usage, self.costs + other.costs)

    @property
    def n_unused(self) -> int:
        """Atoms that no sample uses."""
        return int(np.count_nonzero(self.usage == 0))

    @property
    def l0(self) -> float:
        """Mean number of atoms a sample uses."""
        return float(self.usage.sum() / self.errors.n_samples)


def share_dictionary(
    atoms: np.ndarray,
    mean: np.ndarray | None,
    pursuit: Pursuit,
    max_coherence: float | None = None,
    *,
    device: bool = False,
) -> SharedDictionary:
    """A dictionary for all tasks of a graph, with its Gram matrix as a task of that graph.

    Parameters
    ----------
    atoms : (m, d) floats
    mean : (d,) floats or None
    pursuit : Pursuit
        That of those tasks; its groups say which parts of the Gram matrix they need.
    max_coherence : float, optional
        Note which atoms are nearer to each other.
    device : bool
        Whether the rows are on a device: then the dictionary is moved there, once for all tasks of a worker.
    """
    # In the graph, through the scheduler: what is sent ahead to the workers cannot be made again when they die.
    shared = task(_wrap, atoms, device)
    if device and mean is not None:
        mean = task(placed, mean, device)
    starts = panel_starts(len(atoms))
    # Every worker needs the dictionary anyway; left to itself a cluster leaves all panels to the one that has it first.
    panels = [
        task(_gram_panel, shared, start, max_coherence, home=home)
        for start, home in zip(starts, homes(len(starts)), strict=True)
    ]
    gram = task(_assemble_gram, panels, tuple(group.atoms for group in pursuit.groups(len(atoms))))
    coherence, near, costs = task(_gram_facts, gram, outputs=3)
    return SharedDictionary(shared, mean, gram, coherence, near, costs)


def _wrap(atoms: np.ndarray, device: bool) -> AtomVectors:
    atoms = placed(atoms, device)
    return AtomVectors(atoms if device else np.require(atoms, requirements="A"))


@computing
def _gram_panel(atoms: AtomVectors, start: int, max_coherence: float | None) -> tuple[Panel, StageCosts]:
    costs = StageCosts()
    with costs.stage("gram", atoms.vectors):
        panel = gram_panel(atoms.vectors, start, max_coherence)
    return panel, costs


@computing
def _assemble_gram(panels: list[tuple[Panel, StageCosts]], groups: tuple[slice, ...]) -> Gram:
    costs = reduce(add, (panel_costs for _, panel_costs in panels))
    with costs.stage("gram", panels[0][0].products):
        products = assemble_gram([panel for panel, _ in panels])
        xp = backend_of(products).xp
        blocks = tuple(xp.ascontiguousarray(products[atoms, atoms]) for atoms in groups)
        coherence = to_host(panels_coherence([panel.largest for panel, _ in panels]))
        near = np.concatenate([to_host(panel.near) for panel, _ in panels])
    return Gram(blocks, coherence, near, costs)


def _gram_facts(gram: Gram) -> tuple[np.ndarray, np.ndarray, StageCosts]:
    return gram.coherence, gram.near, gram.costs


def encode_chunk(rows: Any, dictionary: SharedDictionary, pursuit: Pursuit) -> tuple[Lazy, Lazy]:
    """Indices and values of one chunk, as tasks: (n, k) int32 and (n, k) floats, NumPy."""
    return task(_encode, rows, *dictionary[:3], pursuit, outputs=2)


@computing
def _encode(rows: Any, atoms: AtomVectors, mean: np.ndarray | None, gram: Gram, pursuit: Pursuit) -> Codes:
    return Codes(*map(to_host, kernels.encode(rows, atoms.vectors, gram.blocks, mean, pursuit)))


def evaluate_chunks(chunks: Sequence[Any], dictionary: SharedDictionary, pursuit: Pursuit) -> Delayed:
    """`EncodingStatistics` of all chunks together, as a task."""
    parts = [
        task(_evaluate, rows, *dictionary[:3], pursuit, home=home)
        for rows, home in zip(chunks, homes(len(chunks)), strict=True)
    ]
    return delayed_of(tree_sum(parts))[0]


@computing
def _evaluate(
    rows: Any, atoms: AtomVectors, mean: np.ndarray | None, gram: Gram, pursuit: Pursuit
) -> EncodingStatistics:
    # A large chunk by parts, so that its residual is never whole in memory.
    starts = range(0, len(rows[0]), ROWS_PER_TASK)
    parts = [rows] if len(rows) > 1 else [[rows[0][start : start + ROWS_PER_TASK]] for start in starts]
    encodings = (kernels.encode_with_residual(part, atoms.vectors, gram.blocks, mean, pursuit) for part in parts)
    return reduce(add, (EncodingStatistics.of(encoding, len(atoms.vectors)) for encoding in encodings))
