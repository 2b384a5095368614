"""The outer loop: batches → one iteration graph each → new atoms → their average → what happened."""

import contextvars
import logging
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed

from dbksvd_dask.averaging import LearnedAtoms
from dbksvd_dask.batches import OuterBatches, read_in_order
from dbksvd_dask.encoding import EncodingStatistics, evaluate_chunks, share_dictionary
from dbksvd_dask.graph import active_client, delayed_of, task, tree_sum, without_size_warning
from dbksvd_dask.history import COHERENCE_BINS, QUANTILES, STAGES, Iteration
from dbksvd_dask.initialize import distinct_directions, random_directions
from dbksvd_dask.iteration import Update, iterate
from dbksvd_dask.kernels.backend import backend_of, on_device, placed, to_host
from dbksvd_dask.kernels.blas import single_threaded
from dbksvd_dask.kernels.costs import StageCosts
from dbksvd_dask.kernels.pursuit import Pursuit
from dbksvd_dask.lost_workers import check_connected, replayed

logger = logging.getLogger(__name__)

_INIT, _ITERATION = 0, 1  # what a random stream of a fit is for


@dataclass(frozen=True)
class Training:
    """What stays the same over a fit."""

    pursuit: Pursuit
    """With the Matryoshka groups, where there are some."""
    update: Update
    mean: np.ndarray | None
    """(d,) floats taken from the rows first."""
    seed: int
    average: bool
    """Whether the atoms are averaged over iterations."""
    max_coherence: float | None = None
    """Of atoms nearer to each other than this, the less used one is replaced as an unused one is."""
    first_flat: int | None = None
    """The iteration from which on groups no longer take turns; None for never."""

    @property
    def flat(self) -> Pursuit:
        """One pursuit over all atoms, as the dictionary will be used."""
        return replace(self.pursuit, group_sizes=())

    def pursuit_of(self, iteration: int) -> Pursuit:
        """How the batch of an iteration is encoded."""
        return self.pursuit if self.first_flat is None or iteration < self.first_flat else self.flat


class State(NamedTuple):
    """What an iteration takes over from the one before: all that has to be kept to go on."""

    learned: LearnedAtoms
    iteration: int = 0
    """The next one; random choices follow from it and the seed."""
    n_samples_seen: int = 0

    def placed(self, device: bool) -> "State":
        """The same with its atoms on a device, or as NumPy arrays."""
        latest, average, n_averaged = self.learned
        there = placed(latest, device)
        other = there if average is latest else placed(average, device)
        return self._replace(learned=LearnedAtoms(there, other, n_averaged))


def train(
    batches: OuterBatches, validation: da.Array | None, training: Training, state: State, n_iterations: int
) -> Generator[tuple[State, Iteration]]:
    """Iterate, and yield the state and what happened after each iteration.

    Parameters
    ----------
    batches : OuterBatches
    validation : dask.array.Array or None
        (n, d) held-out embeddings.
    training : Training
    state : State
        What to begin with.
    n_iterations : int
    """
    with single_threaded(), closing(Reading(batches, validation, state.iteration + n_iterations)) as reading:
        for _ in range(n_iterations):
            state, record = advance(reading, training, state)
            error, seconds = record.train_relative_error, record.seconds
            logger.info("iteration %d: relative error %.4f, %.2f s", record.iteration, error, seconds)
            yield state, record


class Reading:
    """The rows that iterations take: the held-out ones are read once, each batch while something else is computed.

    They are read on the cluster, or in a thread beside the local scheduler.

    Parameters
    ----------
    batches : OuterBatches
    validation : dask.array.Array or None
        (n, d) held-out embeddings.
    stop : int
        The iteration before which all ends: its batch is not read.
    """

    def __init__(self, batches: OuterBatches, validation: da.Array | None, stop: int) -> None:
        self._batches = batches
        self._validation = validation
        self._stop = stop
        self.client = active_client()
        self.device = batches.device
        self._context = contextvars.copy_context()  # holds which client is the current one
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self.forget()

    def close(self) -> None:
        """Read no more."""
        self.forget()
        self._reader.shutdown()

    def forget(self) -> None:
        """Let go of all rows: what is asked for next is read anew."""
        self._batch: dict[int, Future] = {}  # that of the present iteration, and of the next one
        self._held_out: tuple[Delayed, ...] | None = None

    def batch(self, iteration: int) -> Sequence[Delayed]:
        """The rows of the batch of an iteration; the next one begins to be read."""
        self._batch = {number: rows for number, rows in self._batch.items() if number >= iteration}
        chunks = self._begin(iteration).result()
        if iteration + 1 < self._stop:
            self._begin(iteration + 1)
        return chunks

    def _begin(self, iteration: int) -> Future:
        if iteration not in self._batch:
            read = partial(self._context.run, lambda: dask.persist(*self._batches.read(iteration)))
            self._batch[iteration] = self._reader.submit(read)
        return self._batch[iteration]

    def held_out(self) -> Sequence[Delayed] | None:
        """All held-out rows, None where there are none; a row that is not finite is an error here."""
        if self._held_out is None and self._validation is not None:
            everything = OuterBatches(self._validation, len(self._validation), None, seed=0, name="validation")
            chunks = dask.persist(*everything.read(0))
            dask.compute(delayed_of(*[task(_count_rows, chunk) for chunk in chunks]))
            self._held_out = chunks
        return self._held_out


def advance(reading: Reading, training: Training, state: State) -> tuple[State, Iteration]:
    """One iteration on one outer batch; begun again where workers are lost beyond what Dask makes good itself.

    Parameters
    ----------
    reading : Reading
    training : Training
    state : State
    """

    def attempt() -> tuple[State, Iteration]:
        try:
            return _advance(reading, training, state)
        except BaseException:
            reading.forget()  # the workers that held them may be gone
            raise

    check_connected(reading.client, f"iteration {state.iteration}")
    return replayed(attempt, f"iteration {state.iteration}")


def _advance(reading: Reading, training: Training, state: State) -> tuple[State, Iteration]:
    held_out = reading.held_out()
    start, wait = perf_counter(), StageCosts()
    with wait.stage("wait"):
        chunks = reading.batch(state.iteration)
    outcome = _iterate_now(chunks, state.learned.latest, training, state.iteration, reading.device)
    del chunks
    atoms = outcome.atoms
    before = state.placed(on_device(atoms)).learned
    learned = before.averaged_with(atoms) if training.average else LearnedAtoms.of(atoms)
    validated = None if held_out is None else _evaluate_now(held_out, learned.average, training, reading.device)
    seen = state.n_samples_seen + outcome.batch.errors.n_samples
    record = _record(state.iteration, seen, outcome, validated, wait, perf_counter() - start)
    return State(learned, state.iteration + 1, seen), record


class _Outcome(NamedTuple):
    """What the graph of one iteration leaves."""

    atoms: np.ndarray
    """(m, d) floats: the new dictionary, on a device where it was made there in this process."""
    batch: EncodingStatistics
    """Of the outer batch, under the dictionary that the iteration began with."""
    n_duplicates: int
    """Atoms that were replaced for being near to another one."""
    coherence: np.ndarray
    """(m,) floats: that of the dictionary that the iteration began with."""
    costs: StageCosts


def _iterate_now(
    chunks: Sequence[Delayed], atoms: np.ndarray, training: Training, iteration: int, device: bool
) -> _Outcome:
    """Make the graph of one iteration, and compute it; with this call goes what it held in memory."""
    pursuit = training.pursuit_of(iteration)
    dictionary = share_dictionary(atoms, training.mean, pursuit, training.max_coherence, device=device)
    seed = [training.seed, _ITERATION, iteration]
    tasks = iterate(chunks, dictionary, len(atoms), pursuit, training.update, seed)
    facts = delayed_of(dictionary.coherence, dictionary.gram_costs)
    with without_size_warning():
        computed = dask.compute(tasks, facts, **_one_thread(device))
    (new, batch, n_duplicates, update_costs), (coherence, gram_costs) = computed
    costs = batch.costs + update_costs + gram_costs
    if not on_device(new):  # what comes from a worker begins at any byte, with which CPUs compute other last bits
        new = np.require(new, requirements=["C", "A"])
    return _Outcome(new, batch, n_duplicates, coherence, costs)


def _evaluate_now(
    held_out: Sequence[Delayed], atoms: np.ndarray, training: Training, device: bool
) -> EncodingStatistics:
    dictionary = share_dictionary(atoms, training.mean, training.flat, device=device)
    with without_size_warning():
        return evaluate_chunks(held_out, dictionary, training.flat).compute(**_one_thread(device))


def _one_thread(device: bool) -> dict[str, Any]:
    """How tasks on the device of this process are computed: each thread would take memory there for its cuBLAS."""
    return {"num_workers": 1} if device and active_client() is None else {}


def _record(
    iteration: int,
    n_samples_seen: int,
    outcome: _Outcome,
    validated: EncodingStatistics | None,
    wait: StageCosts,
    seconds: float,
) -> Iteration:
    validation = (np.nan,) * 4
    costs = outcome.costs + wait
    if validated is not None:
        validation = _figures(validated)
        costs += validated.costs.as_stage("validation")
    return Iteration(
        iteration,
        n_samples_seen,
        *_figures(outcome.batch),
        *validation,
        n_unused_atoms=outcome.batch.n_unused,
        n_duplicate_atoms=outcome.n_duplicates,
        coherence=np.quantile(outcome.coherence, QUANTILES),
        # Two equal atoms have a |cos| of 1 but for rounding.
        coherence_histogram=np.histogram(np.minimum(outcome.coherence, 1), COHERENCE_BINS, (0, 1))[0],
        seconds=seconds,
        stage_seconds=np.array([costs.seconds.get(stage, 0.0) for stage in STAGES]),
        peak_memory=np.array([costs.peak_memory.get(stage, 0) for stage in STAGES]),
    )


def _figures(statistics: EncodingStatistics) -> tuple[float, float, float, float]:
    errors = statistics.errors
    return errors.relative_error, errors.variance_explained, errors.variance_explained_per_feature, statistics.l0


def first_atoms(batches: OuterBatches, n_atoms: int, init: str, known: np.ndarray, training: Training) -> np.ndarray:
    """The dictionary to begin with: what is known of it, then rows of the first batches, or random directions.

    Parameters
    ----------
    batches : OuterBatches
    n_atoms : int
    init : "samples" or "random"
    known : (f, d) floats
        Atoms known beforehand, in the precision of the computation.
    training : Training

    Returns
    -------
    (m, d) floats
        Unit rows. Data rows are different directions; random ones stand in where the batches do not hold enough.
    """
    missing = n_atoms - len(known)
    directions = known[:0] if init == "random" or missing == 0 else _data_directions(batches, missing, known, training)
    others = random_directions(missing - len(directions), known.shape[1], known.dtype, [training.seed, _INIT])
    return np.concatenate([known, directions, others])


def _data_directions(batches: OuterBatches, count: int, known: np.ndarray, training: Training) -> np.ndarray:
    """Different directions of rows drawn from the first batches: (≤ count, d) floats."""
    # More rows than atoms, and from as many batches as it takes: zero rows and repeated tokens are passed over.
    rng = np.random.default_rng([training.seed, _INIT])
    rows = directions = known[:0]
    for number in range(batches.first_iteration, batches.first_iteration + batches.n_batches):
        chosen = rng.permutation(batches.size(number))[: 2 * count]
        more = _rows_of_chunks(batches.read(number), chosen).astype(known.dtype)
        rows = np.concatenate([rows, more if training.mean is None else more - training.mean])
        if len(rows) >= count:
            directions = distinct_directions(rows, count, known)
        if len(directions) == count:
            break
    return directions


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
    return to_host(backend_of(rows[0]).xp.concatenate(rows)[chosen])


def embeddings_mean(embeddings: da.Array, dtype: np.dtype) -> np.ndarray:
    """Mean of each feature over all rows, in one pass: (d,) floats."""
    sums = tree_sum([task(_sum_rows, rows) for _, rows in read_in_order(embeddings)])
    return (delayed_of(sums)[0].compute() / len(embeddings)).astype(dtype)


def _sum_rows(rows: list[np.ndarray]) -> np.ndarray:
    return np.sum([to_host(piece.sum(axis=0, dtype=np.float64)) for piece in rows], axis=0)
