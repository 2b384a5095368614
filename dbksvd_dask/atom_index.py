"""What there is to show of each atom, found in two passes over codes that may be larger than memory, and kept."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import dask
import numpy as np
import xarray as xr

from dbksvd_dask.atom_passes import N_BINS, N_EXAMPLES, REACH, coordinates, first_pass, second_pass, steps_of
from dbksvd_dask.codes import SparseCodes
from dbksvd_dask.metrics import atom_usage, coherence
from dbksvd_dask.store import open_store, store_identity, write_store

KIND = "atom-index"

_ATOMS_PER_CHUNK = 256  # a click reads one chunk of each variable: a few milliseconds
_SAMPLED_PER_CHUNK = 2**15
_HERE = "threads"  # a client's workers would need more time to be asked than it takes
_COORDINATE = "example_coordinate_"
_NEEDED = (
    *("usage", "mean_abs", "coherence", "low", "high", "histogram"),
    *("example_sample", "example_value", "sampled_indices", "sampled_usage"),
    *("n_samples", "codes", "dictionary", "layout"),
)


class Together(NamedTuple):
    """Atoms that are used in the same samples as a given one, those most above chance first."""

    atoms: np.ndarray
    """(up to a given number,) integers."""
    share: np.ndarray
    """Share of the given atom's samples that use each of them."""
    lift: np.ndarray
    """Share / share of all samples that use it."""
    n_sampled: int
    """Samples of the given atom on which this was counted."""


class AtomIndex:
    """What there is to show of each atom; `atom_index` finds it.

    Parameters
    ----------
    dataset : xarray.Dataset
        As `build_index` returns it, in memory or opened.
    path : path, optional
        Where it was opened.
    """

    def __init__(self, dataset: xr.Dataset, path: Path | None = None) -> None:
        self._path, self._identity = path, dataset.attrs.get("identity")
        self._rows = dataset.drop_vars("sampled_indices")
        self.n_samples: int = dataset.attrs["n_samples"]
        self.n_atoms: int = dataset.sizes["atom"]
        names = ["usage", "mean_abs", "coherence", "sampled_indices", "sampled_usage"]
        columns = dataset[names].compute(scheduler=_HERE)
        self._sampled: np.ndarray = columns.sampled_indices.values
        self._sampled_usage: np.ndarray = columns.sampled_usage.values
        self.usage: np.ndarray = columns.usage.values
        self.mean_abs: np.ndarray = columns.mean_abs.values
        self.coherence: np.ndarray = columns.coherence.values

    def atom(self, atom: int) -> dict[str, np.ndarray]:
        """Everything about one atom: the variables of the index without the dimension "atom".

        Those over "example" are only of the examples that there are: the strongest positive ones first, then the
        strongest negative ones.
        """
        return self.several([atom])[0]

    def several(self, atoms: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """The same of several atoms, which are read together.

        Raises
        ------
        ValueError
            If the store was written anew or deleted since it was opened.
        """
        if self._path is not None and store_identity(self._path) != self._identity:
            raise ValueError(f"{self._path} was written anew or deleted since it was opened: call explore again")
        rows = self._rows.isel(atom=list(atoms)).compute(scheduler="sync")
        arrays = [(str(name), array.values, "example" in array.dims) for name, array in rows.items()]
        there = rows.example_sample.values >= 0
        return [
            {name: values[i][there[i]] if over_examples else values[i] for name, values, over_examples in arrays}
            for i in range(len(atoms))
        ]

    def example_coordinates(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """(m, examples) coordinates of the examples of all atoms; where there is no example they mean nothing."""
        found = {name: self._rows[_COORDINATE + name] for name in names if _COORDINATE + name in self._rows}
        return {name: array.compute(scheduler=_HERE).values for name, array in found.items()}

    @cached_property
    def is_example(self) -> np.ndarray:
        """(m, examples) bool: where there is an example."""
        return self._rows.example_sample.compute(scheduler=_HERE).values >= 0

    def together(self, atom: int, most: int) -> Together:
        """Atoms that are used together with one, those first whose share is the most above that of all samples.

        Counted on all samples, or on `MOST_SAMPLED` of them at random where there are more.

        Parameters
        ----------
        atom : int
        most : int
            How many.
        """
        n_slots = max(self._sampled.shape[1], 1)
        users = np.flatnonzero(self._sampled.ravel() == atom) // n_slots
        counts = atom_usage(self._sampled[users], self.n_atoms)
        counts[atom] = 0
        share, overall = counts / max(len(users), 1), self._sampled_usage / len(self._sampled)
        found = np.flatnonzero(counts)
        order = np.argsort(overall[found] - share[found], kind="stable")[:most]
        chosen = found[order]
        return Together(chosen, share[chosen], share[chosen] / overall[chosen], len(users))


def coordinates_of_examples(row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The coordinates among what `AtomIndex.atom` returns: (examples,) of each."""
    return {name.removeprefix(_COORDINATE): array for name, array in row.items() if name.startswith(_COORDINATE)}


def atom_index(codes: SparseCodes, atoms: np.ndarray) -> AtomIndex:
    """The index of codes by atom: the stored one if it is of these codes and atoms, else a new one.

    Codes of a store at ``NAME.zarr`` have their index in ``NAME.atoms.zarr`` beside it. It is written as all stores
    are, whole or not at all, and made anew when the codes were written again or the atoms are others. Codes that are
    not from a store have theirs in memory.

    Parameters
    ----------
    codes : SparseCodes
    atoms : (m, d) floats

    Warns
    -----
    UserWarning
        If the index cannot be written: it is kept in memory.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from dbksvd_dask import open_codes
    >>> codes = SparseCodes(np.array([[2, 0], [2, -1]], np.int32), np.array([[3.0, -4.0], [1.0, 0.0]]), n_atoms=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     codes.to_zarr(f"{folder}/codes.zarr")
    ...     index = atom_index(open_codes(f"{folder}/codes.zarr"), np.eye(3))
    ...     index.atom(2)["example_sample"], index_path(Path(folder, "codes.zarr")).exists()
    (array([0, 1]), True)
    """
    if codes.store is None:
        return AtomIndex(build_index(codes, atoms))
    path = index_path(codes.store.path)
    layout = f"{N_EXAMPLES} {REACH} {N_BINS}"
    made_of = {"codes": codes.store.identity, "dictionary": fingerprint(atoms), "layout": layout}
    stored = _open_index(path, made_of)
    if stored is not None:
        return stored
    built = build_index(codes, atoms).assign_attrs(made_of)
    try:
        with dask.config.set(scheduler=_HERE):
            write_store(built.chunk(atom=_ATOMS_PER_CHUNK, sampled=_SAMPLED_PER_CHUNK), path, KIND, overwrite=True)
    except OSError as error:
        reason = f"the index of atoms is in memory only, and will be made again: it cannot be kept ({error})"
        warnings.warn(reason, UserWarning, stacklevel=2)
        return AtomIndex(built)
    return AtomIndex(open_store(path, KIND, _NEEDED), path)


def index_path(codes_path: Path) -> Path:
    """Where the index of a store of codes is.

    Examples
    --------
    >>> index_path(Path("data/codes.zarr")).name
    'codes.atoms.zarr'
    """
    return codes_path.with_name(codes_path.name.removesuffix(".zarr") + ".atoms.zarr")


def fingerprint(atoms: np.ndarray) -> str:
    """A text that is the same for atoms that are the same bits, and only for them."""
    digest = blake2b(f"{atoms.dtype} {atoms.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(atoms).data)
    return digest.hexdigest()


def _open_index(path: Path, made_of: dict[str, str]) -> AtomIndex | None:
    """The stored index, if it is there, whole as far as it is read now, and made of that."""
    try:
        stored = open_store(path, KIND, _NEEDED)
        return AtomIndex(stored, path) if {name: stored.attrs[name] for name in made_of} == made_of else None
    except (FileNotFoundError, ValueError):
        return None


def build_index(codes: SparseCodes, atoms: np.ndarray) -> xr.Dataset:
    """Make the index, in two passes over the codes: the strongest samples of each atom, then what is around them.

    Memory holds the index (about 5 kB an atom, and 4 k bytes for each of `MOST_SAMPLED` samples) and the codes of one
    step, however many samples there are. Chunks are read by threads of this process, whatever Dask client is active.
    Codes that are lazy but of no store are computed first, once, and must fit in memory.

    Parameters
    ----------
    codes : SparseCodes
        With integer coordinates `context` and `position` the index has the coefficients around the examples as well.
    atoms : (m, d) floats

    Returns
    -------
    xarray.Dataset
        Over "atom": `usage`, `mean_abs` (of the coefficients of samples that use it), `coherence`, `low` and `high`
        (lowest and highest coefficient). Over "atom" and "bin": `histogram`, counts in `N_BINS` equal bins from low to
        high. Over "atom" and "example": `example_sample` (−1 where there are fewer) and `example_value`, first the
        strongest positive, then the strongest negative, equal ones in the order of the samples; and the coordinates of
        those samples. Over "atom", "example" and "offset": `example_around`, the atom's coefficients from `REACH`
        positions before the example to `REACH` after it, in its context. Over "sampled" and "slot":
        `sampled_indices`, all codes of up to `MOST_SAMPLED` samples, of which `sampled_usage` use each atom.

    Raises
    ------
    ValueError
        If there is no sample, an index is no atom, or a coefficient is not finite.
    """
    if not codes.shape[0]:
        raise ValueError("the codes have no samples: there is nothing to show")
    if codes.store is None:
        codes = codes.compute()
    steps = steps_of(codes)
    from tqdm.auto import tqdm  # warns in a notebook without ipywidgets, whoever imports it

    with tqdm(total=2 * len(steps), desc="index of atoms", unit="step", delay=1) as bar:
        found = first_pass(codes, steps, bar.update)
        coords = coordinates(codes, found["example_sample"])
        found |= second_pass(codes, steps, found, coords, bar.update)
    found["sampled_usage"] = atom_usage(found["sampled_indices"], codes.n_atoms)
    dims = {
        **dict.fromkeys(("usage", "mean_abs", "low", "high"), ("atom",)),
        **dict.fromkeys(("example_sample", "example_value"), ("atom", "example")),
        "example_around": ("atom", "example", "offset"),
        "histogram": ("atom", "bin"),
        "sampled_indices": ("sampled", "slot"),
        "sampled_usage": ("atom",),
    }
    variables = {name: (dims[name], array) for name, array in found.items()}
    variables |= {_COORDINATE + name: (("atom", "example"), array) for name, array in coords.items()}
    return xr.Dataset(variables, attrs={"n_samples": codes.shape[0]}).assign(coherence=("atom", coherence(atoms)))
