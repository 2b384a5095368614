"""Sparse codes: which atoms each sample uses, and how much of each."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

import dask
import dask.array as da
import numpy as np
import xarray as xr
from scipy.sparse import csr_array

from dbksvd_dask.device import refuse_cupy
from dbksvd_dask.embeddings.places import is_url, placed
from dbksvd_dask.reprs import codes_html
from dbksvd_dask.store import open_store, write_store


class CodesStore(NamedTuple):
    """The store that codes were opened from."""

    path: Path
    """Its absolute path."""
    identity: str
    """Of that write of it."""


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """Sparse codes of n samples over m atoms, in memory or lazy on Dask.

    Parameters
    ----------
    indices : (n, k) int32, NumPy or dask array
        The atom in each slot; −1 in empty slots, which come last.
    values : (n, k) floats, NumPy or dask array
        Its coefficient; 0 in empty slots.
    n_atoms : int
        m.
    coords : mapping, optional
        Coordinates along "sample", as in `xarray.DataArray.coords`.
    store : CodesStore, optional
        Where `open_codes` found them: what is derived from them is kept beside it.

    Examples
    --------
    >>> import numpy as np
    >>> codes = SparseCodes(np.array([[2, 0], [1, -1]], np.int32), np.array([[0.5, -1.0], [2.0, 0.0]]), n_atoms=3)
    >>> codes.to_csr().toarray()
    array([[-1. ,  0. ,  0.5],
           [ 0. ,  2. ,  0. ]])
    """

    indices: np.ndarray | da.Array
    values: np.ndarray | da.Array
    n_atoms: int
    coords: Mapping[str, xr.DataArray] = field(default_factory=dict)
    store: CodesStore | None = None

    def __post_init__(self) -> None:
        """Check that the two arrays go together."""
        arrays = self.indices, self.values
        for name, array in zip(("indices", "values"), arrays, strict=True):
            refuse_cupy(array, name)
        if not any(all(isinstance(array, kind) for array in arrays) for kind in (np.ndarray, da.Array)):
            names = ", ".join(sorted({type(array).__name__ for array in arrays}))
            raise TypeError(f"indices and values must be both NumPy arrays or both dask arrays, not {names}")
        if self.indices.ndim != 2 or self.indices.shape != self.values.shape:
            raise ValueError(
                f"indices {self.indices.shape} and values {self.values.shape} must both be (samples, slots)"
            )
        if self.indices.dtype.kind not in "iu" or self.values.dtype.kind != "f" or self.values.dtype.itemsize > 8:
            raise TypeError(
                "indices must be integers and values floats of at most 64 bits, not "
                f"{self.indices.dtype} and {self.values.dtype}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m): samples and atoms."""
        return self.indices.shape[0], self.n_atoms

    @property
    def n_nonzero_coefs(self) -> int:
        """k: slots of a sample."""
        return self.indices.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the coefficients."""
        return self.values.dtype

    def __repr__(self) -> str:
        """One line: shape, slots, dtype, lazy or not."""
        state = f"lazy, {self.indices.numblocks[0]} chunks" if isinstance(self.indices, da.Array) else "in memory"
        samples, atoms = self.shape
        return (
            f"<SparseCodes: {samples} samples x {atoms} atoms, "
            f"at most {self.n_nonzero_coefs} nonzero, {self.dtype}, {state}>"
        )

    def _repr_html_(self) -> str:
        return codes_html(self)

    def compute(self) -> Self:
        """The same codes in memory.

        Examples
        --------
        >>> import dask.array as da, numpy as np
        >>> lazy = SparseCodes(da.zeros((5, 2), dtype="i4"), da.ones((5, 2)), n_atoms=3)
        >>> lazy.compute()
        <SparseCodes: 5 samples x 3 atoms, at most 2 nonzero, float64, in memory>
        """
        indices, values, coords = dask.compute(self.indices, self.values, dict(self.coords))
        return replace(self, indices=indices, values=values, coords=coords)

    def to_csr(self) -> csr_array:
        """The codes X as an (n, m) SciPy matrix, in memory.

        Examples
        --------
        >>> import numpy as np
        >>> SparseCodes(np.array([[2, 0]]), np.array([[0.5, -1.0]]), n_atoms=3).to_csr().toarray()
        array([[-1. ,  0. ,  0.5]])
        """
        codes = self.compute()
        used = codes.indices >= 0
        ends = np.concatenate([[0], np.cumsum(np.count_nonzero(used, axis=1))])
        matrix = csr_array((codes.values[used], codes.indices[used], ends), shape=self.shape)
        matrix.sort_indices()
        return matrix

    def to_xarray(self) -> xr.Dataset:
        """Variables `indices` and `values` over (sample, slot), with the coordinates of the samples.

        Examples
        --------
        >>> import numpy as np
        >>> SparseCodes(np.array([[2, 0]]), np.array([[0.5, -1.0]]), n_atoms=3).to_xarray().sizes
        Frozen({'sample': 1, 'slot': 2})
        """
        return xr.Dataset(
            {"indices": (("sample", "slot"), self.indices), "values": (("sample", "slot"), self.values)},
            coords=self.coords,
            attrs={"n_atoms": self.n_atoms},
        )

    def to_zarr(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the codes as a zarr store, chunk by chunk: they are never whole in memory.

        Under `path` there is in the end the whole store or what was there before.

        Parameters
        ----------
        path : path
            Local folder.
        overwrite : bool
            Replace codes that are there.

        Raises
        ------
        FileExistsError
            If there is something at `path` that may not be replaced.
        OSError
            If there is no room: nothing is left of what was written.
        ValueError
            If a coordinate has the name of one of the codes' own arrays.

        Examples
        --------
        >>> import numpy as np, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     SparseCodes(np.array([[2]]), np.array([[0.5]]), n_atoms=3).to_zarr(f"{folder}/codes.zarr")
        ...     open_codes(f"{folder}/codes.zarr")
        <SparseCodes: 1 samples x 3 atoms, at most 1 nonzero, float64, lazy, 1 chunks>
        """
        taken = {"indices", "values"}.intersection(self.coords)
        if taken:
            raise ValueError(f"coordinates {sorted(taken)} are called like the codes' own arrays: rename them")
        write_store(self.to_xarray(), path, "codes", overwrite=overwrite)


def open_codes(path: str | os.PathLike[str]) -> SparseCodes:
    """Open codes that `SparseCodes.to_zarr` has written, lazily.

    Parameters
    ----------
    path : path or URL
        Local folder, or any URL of fsspec, from which the workers read.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    OSError
        If it cannot be reached, or may not be read.
    ValueError
        If it is not a complete store of codes, or names codecs that could run code. Codes that fail while they are read
        raise it, too, naming their rows.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> codes = SparseCodes(np.array([[2, 0]], np.int32), np.array([[0.5, -1.0]]), n_atoms=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     codes.to_zarr(f"{folder}/codes.zarr")
    ...     open_codes(f"{folder}/codes.zarr")
    <SparseCodes: 1 samples x 3 atoms, at most 2 nonzero, float64, lazy, 1 chunks>
    """
    dataset = open_store(path, "codes", ["indices", "values", "n_atoms"])
    coords = {str(name): coord for name, coord in dataset.coords.items()}
    identity = dataset.attrs.get("identity")  # stores of older versions have none
    place = placed(path)
    store = CodesStore(Path(place), identity) if identity and not is_url(place) else None
    return SparseCodes(dataset.indices.data, dataset["values"].data, dataset.attrs["n_atoms"], coords, store)
