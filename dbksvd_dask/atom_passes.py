"""Two passes over sparse codes, step by step, that find what the index of atoms holds."""

from collections.abc import Callable, Iterator
from itertools import accumulate

import dask
import dask.array as da
import numpy as np

from dbksvd_dask.codes import SparseCodes
from dbksvd_dask.kernels.cpu.vector import compiled

N_EXAMPLES = 12
"""Strongest samples that are kept of each atom, of either sign."""
REACH = 12
"""Positions before and after an example at which the atom's coefficient is kept."""
N_BINS = 40
"""Bins of a histogram of coefficients."""
MOST_SAMPLED = 2**18
"""Samples whose codes are kept whole, to count which atoms are used together."""
ENTRIES_PER_STEP = 2**22
"""Slots that are in memory at once, unless a chunk has more."""

_NO_CONTEXT = np.iinfo(np.int64).min


def steps_of(codes: SparseCodes) -> list[slice]:
    """Rows to have in memory at once: whole chunks, of about `ENTRIES_PER_STEP` slots together."""
    most = max(ENTRIES_PER_STEP // max(codes.n_nonzero_coefs, 1), 1)
    n_samples = codes.shape[0]
    if not isinstance(codes.indices, da.Array):
        return [slice(start, min(start + most, n_samples)) for start in range(0, n_samples, most)]
    steps: list[slice] = []
    for end in accumulate(codes.indices.chunks[0]):
        begin = steps[-1].stop if steps else 0
        if steps and end - steps[-1].start <= most:
            begin = steps.pop().start
        steps.append(slice(begin, end))
    return steps


def _read(codes: SparseCodes, steps: list[slice], names: tuple[str, ...]) -> Iterator[tuple[int, list[np.ndarray]]]:
    """First row, and indices, values and the coordinates of those names, step by step."""
    for rows in steps:
        lazy = [codes.indices[rows], codes.values[rows], *(codes.coords[name].data[rows] for name in names)]
        indices, values, *coords = dask.compute(*lazy, scheduler="threads")
        if indices.max(initial=0) >= codes.n_atoms:
            raise ValueError(
                f"the codes have index {indices.max()}, but {codes.n_atoms} atoms: is their store damaged?"
            )
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"the codes of sample {rows.start + np.argmin(finite)} are not finite: is their store damaged?"
            )
        indices = np.ascontiguousarray(indices, np.int32)
        yield rows.start, [indices, np.ascontiguousarray(values, _computed(codes)), *coords]


def _computed(codes: SparseCodes) -> np.dtype:
    """The dtype that kernels take for these coefficients."""
    return np.result_type(codes.dtype.newbyteorder("="), np.float32)


def first_pass(codes: SparseCodes, steps: list[slice], progress: Callable[[], object]) -> dict[str, np.ndarray]:
    """Usage, mean |coefficient|, lowest and highest coefficient, strongest samples, and the codes of some samples.

    Parameters
    ----------
    codes : SparseCodes
    steps : list of slice
    progress : callable
        Called after each step.

    Returns
    -------
    dict of arrays
        Called as the variables of `build_index`.
    """
    n_samples, n_atoms = codes.shape
    dtype = _computed(codes)
    usage, sums = np.zeros(n_atoms, np.int64), np.zeros(n_atoms)
    low, high = np.full(n_atoms, np.inf, dtype), np.full(n_atoms, -np.inf, dtype)
    samples = np.full((n_atoms, 2 * N_EXAMPLES), -1, np.int64)
    strongest = np.zeros(samples.shape, dtype)
    sampled = _sampled(n_samples)
    sampled_indices = np.empty((len(sampled), codes.n_nonzero_coefs), np.int32)
    for start, (indices, values) in _read(codes, steps, ()):
        _add_strongest(indices, values, start, usage, sums, low, high, samples, strongest)
        first, last = np.searchsorted(sampled, [start, start + len(indices)])
        sampled_indices[first:last] = indices[sampled[first:last] - start]
        progress()
    low[usage == 0] = high[usage == 0] = 0
    return {
        "usage": usage,
        "mean_abs": sums / np.maximum(usage, 1),
        "low": low,
        "high": high,
        "example_sample": samples,
        "example_value": strongest,
        "sampled_indices": sampled_indices,
    }


def _sampled(n_samples: int) -> np.ndarray:
    """All samples, or `MOST_SAMPLED` of them at random, in ascending order."""
    if n_samples <= MOST_SAMPLED:
        return np.arange(n_samples)
    return np.sort(np.random.default_rng(0).choice(n_samples, MOST_SAMPLED, replace=False, shuffle=False))


@compiled
def _add_strongest(
    indices: np.ndarray,
    values: np.ndarray,
    start: int,
    usage: np.ndarray,
    sums: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    samples: np.ndarray,
    strongest: np.ndarray,
) -> None:
    """Count codes in, and keep the examples of each atom sorted that are the strongest so far."""
    for row in range(indices.shape[0]):
        for slot in range(indices.shape[1]):
            atom = indices[row, slot]
            if atom < 0:
                continue
            value = values[row, slot]
            usage[atom] += 1
            sums[atom] += abs(value)
            low[atom] = min(low[atom], value)
            high[atom] = max(high[atom], value)
            begin = 0 if value > 0 else N_EXAMPLES
            end = place = begin + N_EXAMPLES
            while place > begin and abs(value) > abs(strongest[atom, place - 1]):
                place -= 1
            if place < end:
                for later in range(end - 1, place, -1):
                    strongest[atom, later] = strongest[atom, later - 1]
                    samples[atom, later] = samples[atom, later - 1]
                strongest[atom, place] = value
                samples[atom, place] = start + row


def coordinates(codes: SparseCodes, samples: np.ndarray) -> dict[str, np.ndarray]:
    """The coordinates of samples, each in their shape; those of sample 0 for −1."""
    needed, where = np.unique(np.maximum(samples, 0), return_inverse=True)
    read = dask.compute({name: coord.data[needed] for name, coord in codes.coords.items()}, scheduler="threads")[0]
    return {name: np.asarray(values)[where.ravel()].reshape(samples.shape) for name, values in read.items()}


def second_pass(
    codes: SparseCodes,
    steps: list[slice],
    found: dict[str, np.ndarray],
    coords: dict[str, np.ndarray],
    progress: Callable[[], object],
) -> dict[str, np.ndarray]:
    """Histograms, and the coefficients around the examples where the samples have a context and a position.

    Parameters
    ----------
    codes : SparseCodes
    steps : list of slice
    found : dict of arrays
        Of the first pass.
    coords : dict of arrays
        Of the examples: those that `coordinates` found.
    progress : callable
        Called after each step.

    Returns
    -------
    dict of arrays
        Called as the variables of `build_index`.
    """
    samples = found["example_sample"]
    histogram = np.zeros((len(samples), N_BINS), np.int64)
    added = {"histogram": histogram}
    places = "context", "position"
    placed = all(name in coords and coords[name].dtype.kind in "iu" for name in places)
    if placed:
        contexts = np.where(samples >= 0, coords["context"].astype(np.int64), _NO_CONTEXT)
        positions = coords["position"].astype(np.int64)
        around = np.zeros((*samples.shape, 2 * REACH + 1), found["example_value"].dtype)
        added["example_around"] = around
    for _, (indices, values, *place) in _read(codes, steps, places if placed else ()):
        _add_to_bins(indices, values, found["low"], found["high"], histogram)
        if placed:
            context, position = (np.ascontiguousarray(coord, np.int64) for coord in place)
            _add_around(indices, values, context, position, contexts, positions, around)
        progress()
    return added


@compiled
def _add_to_bins(
    indices: np.ndarray, values: np.ndarray, low: np.ndarray, high: np.ndarray, histogram: np.ndarray
) -> None:
    """Count each coefficient in its atom's bin; those that are all the same in the first."""
    for row in range(indices.shape[0]):
        for slot in range(indices.shape[1]):
            atom = indices[row, slot]
            if atom < 0:
                continue
            width = np.float64(high[atom]) - low[atom]
            share = (values[row, slot] - np.float64(low[atom])) / width if width > 0 else 0.0
            histogram[atom, min(int(share * N_BINS), N_BINS - 1)] += 1


@compiled
def _add_around(
    indices: np.ndarray,
    values: np.ndarray,
    context: np.ndarray,
    position: np.ndarray,
    contexts: np.ndarray,
    positions: np.ndarray,
    around: np.ndarray,
) -> None:
    """Note each coefficient at the examples of its atom that are near in the same context."""
    for row in range(indices.shape[0]):
        for slot in range(indices.shape[1]):
            atom = indices[row, slot]
            if atom < 0:
                continue
            for example in range(contexts.shape[1]):
                if contexts[atom, example] == context[row]:
                    offset = position[row] - positions[atom, example] + REACH
                    if 0 <= offset <= 2 * REACH:
                        around[atom, example, offset] = values[row, slot]
