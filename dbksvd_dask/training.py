"""The outer loop: batches → one iteration graph each → new atoms → their average → what happened."""

import contextvars
import logging
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from time import perf_counter
from typing import NamedTuple

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed

from dbksvd_dask.averaging import LearnedAtoms
from dbksvd_dask.batches import OuterBatches, read_in_order
from dbksvd_dask.encoding import EncodingStatistics, add_seconds, evaluate_chunks, share_dictionary
from dbksvd_dask.graph import delayed_of, task, tree_sum, without_size_warning
from dbksvd_dask.history import QUANTILES, STAGES, Iteration
from dbksvd_dask.initialize import distinct_directions, random_directions
from dbksvd_dask.iteration import Update, iterate
from dbksvd_dask.kernels.blas import single_threaded
from dbksvd_dask.kernels.chunk import Pursuit

logger = logging.getLogger(__name__)

_INIT, _ITERATION = 0, 1  # what a random stream of a fit is for


@dataclass(frozen=True)
class Training:
    """What stays the same over a fit."""

    pursuit: Pursuit
    update: Update
    mean: np.ndarray | None
    """(d,) floats taken from the rows first."""
    seed: int


def train(
    batches: OuterBatches,
    validation: da.Array | None,
    training: Training,
    learned: LearnedAtoms,
    first_iteration: int,
    n_iterations: int,
    n_samples_seen: int,
    average: bool,
) -> Generator[tuple[LearnedAtoms, Iteration]]:
    """Iterate, and yield what is learned and what happened after each iteration.

    The lineage ends with the iteration: the driver holds the atoms and the number of the iteration, and random
    choices follow from that number and the seed.

    Parameters
    ----------
    batches : OuterBatches
    validation : dask.array.Array or None
        (n, d) held-out embeddings.
    training : Training
    learned : LearnedAtoms
        What to begin with.
    first_iteration, n_iterations : int
    n_samples_seen : int
        Before the first iteration.
    average : bool
        Average the atoms over iterations.
    """
    last = first_iteration + n_iterations - 1
    with single_threaded(), ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        held_out = None if validation is None else _read_now(validation)
        upcoming = _persist_ahead(reader, batches, first_iteration)
        for iteration in range(first_iteration, last + 1):
            start = perf_counter()
            chunks = upcoming.result()
            wait = perf_counter() - start
            if iteration < last:
                upcoming = _persist_ahead(reader, batches, iteration + 1)
            outcome = _iterate_now(chunks, learned.latest, training, iteration)
            del chunks
            learned = learned.averaged_with(outcome.atoms) if average else LearnedAtoms.of(outcome.atoms)
            validated = None if held_out is None else _evaluate_now(held_out, learned.average, training)
            n_samples_seen += outcome.batch.errors.n_samples
            record = _record(iteration, n_samples_seen, outcome, validated, wait, perf_counter() - start)
            logger.info(
                "iteration %d: relative error %.4f, %.2f s", iteration, record.train_relative_error, record.seconds
            )
            yield learned, record


class _Outcome(NamedTuple):
    """What the graph of one iteration leaves."""

    atoms: np.ndarray
    """(m, d) floats: the new dictionary."""
    batch: EncodingStatistics
    """Of the outer batch, under the dictionary that the iteration began with."""
    coherence: np.ndarray
    """(m,) floats: that of the dictionary that the iteration began with."""
    stage_seconds: dict[str, float]


def _iterate_now(chunks: Sequence[Delayed], atoms: np.ndarray, training: Training, iteration: int) -> _Outcome:
    """Make the graph of one iteration, and compute it; with this call goes what it held in memory."""
    dictionary = share_dictionary(atoms, training.mean)
    seed = [training.seed, _ITERATION, iteration]
    tasks = iterate(chunks, dictionary, len(atoms), training.pursuit, training.update, seed)
    facts = delayed_of(dictionary.coherence, dictionary.gram_seconds)
    with without_size_warning():
        (new, batch, update_seconds), (coherence, gram_seconds) = dask.compute(tasks, facts)
    seconds = reduce(add_seconds, [batch.seconds, update_seconds, gram_seconds])
    # What comes from a worker begins at any byte, with which NumPy and numba compute other last bits.
    return _Outcome(np.require(new, requirements=["C", "A"]), batch, coherence, seconds)


def _evaluate_now(held_out: Sequence[Delayed], atoms: np.ndarray, training: Training) -> EncodingStatistics:
    dictionary = share_dictionary(atoms, training.mean)
    with without_size_warning():
        return evaluate_chunks(held_out, dictionary, training.pursuit).compute()


def _read_now(embeddings: da.Array) -> tuple[Delayed, ...]:
    """All rows, where the tasks run; a row that is not finite is an error here."""
    everything = OuterBatches(embeddings, len(embeddings), None, seed=0, name="validation")
    chunks = dask.persist(*everything.read(0))
    dask.compute(delayed_of(*[task(_count_rows, chunk) for chunk in chunks]))
    return chunks


def _persist_ahead(reader: ThreadPoolExecutor, batches: OuterBatches, iteration: int) -> Future:
    """Read a batch while something else is computed: on the cluster, or in a thread beside the local scheduler."""
    context = contextvars.copy_context()  # holds which client is the current one
    return reader.submit(context.run, lambda: dask.persist(*batches.read(iteration)))


def _record(
    iteration: int,
    n_samples_seen: int,
    outcome: _Outcome,
    validated: EncodingStatistics | None,
    wait: float,
    seconds: float,
) -> Iteration:
    validation = (np.nan,) * 4
    stage_seconds = outcome.stage_seconds | {"wait": wait}
    if validated is not None:
        validation = _figures(validated)
        stage_seconds["validation"] = sum(validated.seconds.values())
    return Iteration(
        iteration,
        n_samples_seen,
        *_figures(outcome.batch),
        *validation,
        n_unused_atoms=outcome.batch.n_unused,
        coherence=np.quantile(outcome.coherence, QUANTILES),
        seconds=seconds,
        stage_seconds=np.array([stage_seconds.get(stage, 0.0) for stage in STAGES]),
    )


def _figures(statistics: EncodingStatistics) -> tuple[float, float, float, float]:
    errors = statistics.errors
    return errors.relative_error, errors.variance_explained, errors.variance_explained_per_feature, statistics.l0


def first_atoms(batches: OuterBatches, n_atoms: int, init: str, dtype: np.dtype, training: Training) -> np.ndarray:
    """The dictionary to begin with: rows of the first batches, or random directions.

    Parameters
    ----------
    batches : OuterBatches
    n_atoms : int
    init : "samples" or "random"
    dtype : float32 or float64
    training : Training

    Returns
    -------
    (m, d) floats
        Unit rows. Data rows are different directions; random ones stand in where the batches do not hold enough.
    """
    seed = [training.seed, _INIT]
    n_features = batches.embeddings.shape[1]
    if init == "random":
        return random_directions(n_atoms, n_features, dtype, seed)
    # More rows than atoms, and from as many batches as it takes: zero rows and repeated tokens are passed over.
    rng = np.random.default_rng(seed)
    rows = directions = np.empty((0, n_features), dtype)
    for number in range(batches.first_iteration, batches.first_iteration + batches.n_batches):
        chosen = rng.permutation(batches.size(number))[: 2 * n_atoms]
        more = _rows_of_chunks(batches.read(number), chosen).astype(dtype)
        rows = np.concatenate([rows, more if training.mean is None else more - training.mean])
        if len(rows) >= n_atoms:
            directions = distinct_directions(rows, n_atoms)
        if len(directions) == n_atoms:
            return directions
    return np.concatenate([directions, random_directions(n_atoms - len(directions), n_features, dtype, seed)])


def _rows_of_chunks(chunks: list[Delayed], chosen: np.ndarray) -> np.ndarray:
    """The chosen rows of the chunks one below the other; only they leave the workers."""
    persisted = dask.persist(*chunks)
    ends = np.cumsum(dask.compute(*delayed_of(*[task(_count_rows, chunk) for chunk in persisted])))
    home = np.searchsorted(ends, chosen, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    wanted = [np.flatnonzero(home == chunk) for chunk in range(len(ends))]
    per_chunk = zip(persisted, wanted, starts, strict=True)
    takes = [task(_take_rows, rows, chosen[places] - start) for rows, places, start in per_chunk]
    taken = dask.compute(*delayed_of(*takes))
    return np.concatenate(taken)[np.argsort(np.concatenate(wanted))]


def _count_rows(rows: list[np.ndarray]) -> int:
    return sum(map(len, rows))


def _take_rows(rows: list[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    return np.concatenate(rows)[chosen]


def embeddings_mean(embeddings: da.Array, dtype: np.dtype) -> np.ndarray:
    """Mean of each feature over all rows, in one pass: (d,) floats."""
    sums = tree_sum([task(_sum_rows, rows) for _, rows in read_in_order(embeddings)])
    return (delayed_of(sums)[0].compute() / len(embeddings)).astype(dtype)


def _sum_rows(rows: list[np.ndarray]) -> np.ndarray:
    return sum(piece.sum(axis=0, dtype=np.float64) for piece in rows)
