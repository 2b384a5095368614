"""A learned dictionary: its atoms and where they come from; encodes, decodes, and keeps itself as zarr."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import delayed
from scipy.sparse import csr_array, issparse

from dbksvd_dask import metrics
from dbksvd_dask.atoms import check_atoms, check_labels, check_provenance
from dbksvd_dask.batches import read_in_order
from dbksvd_dask.checkpoint_store import KIND, open_checkpoint
from dbksvd_dask.codes import SparseCodes, open_codes
from dbksvd_dask.device import refuse_cupy, warn_of_slow_float64
from dbksvd_dask.embeddings import open_embeddings
from dbksvd_dask.embeddings.opening import Source
from dbksvd_dask.encoding import encode_chunk, share_dictionary
from dbksvd_dask.graph import Lazy, delayed_of, task
from dbksvd_dask.kernels.backend import on_device
from dbksvd_dask.kernels.chunk import reconstruct
from dbksvd_dask.kernels.pursuit import Pursuit
from dbksvd_dask.matryoshka import check_group_sizes, check_shares
from dbksvd_dask.reprs import dictionary_html
from dbksvd_dask.store import open_store, store_kind, write_store

if TYPE_CHECKING:
    from dbksvd_dask.widgets import AtomExplorer

_NEEDED = "atoms", "n_nonzero_coefs", "encoder", "nonnegative", "rtol", "provenance"


class Dictionary:
    """Unit-norm atoms over d features, with what is needed to encode by them.

    Parameters
    ----------
    atoms : (m, d) floats
        Unit rows. float16 becomes float32.
    n_nonzero_coefs : int, optional
        k that `encode` uses by default.
    mean : (d,) floats, optional
        Taken from embeddings before they are encoded, and given back when codes are decoded.
    encoder : "mp" or "omp"
        Pursuit that `encode` uses by default, and so with the next two.
    nonnegative : bool
    rtol : float
    group_sizes : sequence of int
        Atoms of each Matryoshka group, in order; empty where there are none.
    history : xarray.Dataset, optional
        How the fit went, over "iteration".
    provenance : mapping, optional
        Where the dictionary comes from: parameters, versions, data. JSON values.
    labels : mapping of int to str, optional
        What somebody calls some of the atoms.

    Raises
    ------
    TypeError
        If the atoms are not floating, labels not whole numbers with text, or the provenance is not JSON.
    ValueError
        If the atoms are not two-dimensional, finite and of unit norm, or the other parameters do not fit them.

    Examples
    --------
    >>> import numpy as np
    >>> D = Dictionary(np.eye(3, dtype="float32"), n_nonzero_coefs=2)
    >>> codes = D.encode(np.array([[3.0, 0.0, -4.0]], dtype="float32"))
    >>> codes.indices, codes.values
    (array([[2, 0]], dtype=int32), array([[-4.,  3.]], dtype=float32))
    >>> D.decode(codes)
    array([[ 3.,  0., -4.]], dtype=float32)
    """

    def __init__(
        self,
        atoms: np.ndarray,
        n_nonzero_coefs: int | None = None,
        *,
        mean: np.ndarray | None = None,
        encoder: Literal["mp", "omp"] = "mp",
        nonnegative: bool = False,
        rtol: float = 0.0,
        group_sizes: Sequence[int] = (),
        history: xr.Dataset | None = None,
        provenance: Mapping[str, Any] | None = None,
        labels: Mapping[int, str] | None = None,
    ) -> None:
        self.atoms = check_atoms(atoms, "atoms")
        refuse_cupy(mean, "mean")
        self.mean = None if mean is None else self._check_mean(np.asarray(mean))
        self.n_nonzero_coefs = None if n_nonzero_coefs is None else self._check_k(n_nonzero_coefs)
        self.encoder = encoder
        self.nonnegative = nonnegative
        self.rtol = rtol
        self.group_sizes = () if np.shape(group_sizes) == (0,) else check_group_sizes(group_sizes, self.n_atoms)
        Pursuit(1, encoder, nonnegative, rtol)  # refuses what is not allowed or does not go together
        self.history = xr.Dataset() if history is None else history
        self.provenance = check_provenance(provenance or {})
        self.labels = check_labels(labels or {}, self.n_atoms)

    @property
    def n_atoms(self) -> int:
        """Number of atoms, m."""
        return self.atoms.shape[0]

    @property
    def n_features(self) -> int:
        """Number of features, d."""
        return self.atoms.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d): atoms and features."""
        return self.n_atoms, self.n_features

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the atoms, and of what is computed with them."""
        return self.atoms.dtype

    @property
    def group(self) -> np.ndarray:
        """Matryoshka group of each atom, from 0; all 0 where there are none: (m,) integers."""
        sizes = self.group_sizes or (self.n_atoms,)
        return np.repeat(np.arange(len(sizes)), sizes)

    def __repr__(self) -> str:
        """One line: atoms, features, dtype, k, groups."""
        k = "" if self.n_nonzero_coefs is None else f", k={self.n_nonzero_coefs}"
        groups = f", {len(self.group_sizes)} groups" if self.group_sizes else ""
        return f"<Dictionary: {self.n_atoms} atoms x {self.n_features} features, {self.dtype}{k}{groups}>"

    def _repr_html_(self) -> str:
        return dictionary_html(self)

    def encode(
        self,
        Y: Source,
        n_nonzero_coefs: int | None = None,
        *,
        encoder: Literal["mp", "omp"] | None = None,
        nonnegative: bool | None = None,
        rtol: float | None = None,
        refit: Literal["none", "lstsq"] = "none",
        group_wise: bool = False,
    ) -> SparseCodes:
        """Sparse codes of embeddings.

        Parameters
        ----------
        Y : (n, d) embeddings
            Whatever `open_embeddings` takes.
        n_nonzero_coefs : int, optional
            k, the most atoms a sample may use; any number up to m. The dictionary's own by default, as are the next
            three.
        encoder : "mp" or "omp", optional
            Matching pursuit or orthogonal matching pursuit.
        nonnegative : bool, optional
            Positive coefficients only.
        rtol : float, optional
            Ends a sample at ``‖r‖ ≤ rtol ‖y‖``.
        refit : "none" or "lstsq"
            ``"lstsq"``: least-squares coefficients on the support that the pursuit found.
        group_wise : bool
            Encode by one Matryoshka group after the other, each what those before leave and with its share of k, as in
            the fit; else by one pursuit over all atoms.

        Returns
        -------
        SparseCodes
            In memory for a NumPy or CuPy array; else lazy, on Dask, in whole chunks of the embeddings: each is read,
            encoded and let go by one task. Of NumPy arrays, also where the embeddings are on a device. Zero rows get
            empty codes.

        Raises
        ------
        ValueError
            If Y has another number of features, or a parameter is out of range; for rows that are not finite, when
            the codes are computed.

        Examples
        --------
        >>> import dask.array as da, numpy as np
        >>> D = Dictionary(np.eye(3), n_nonzero_coefs=1)
        >>> Y = np.array([[3.0, 0.0, -4.0], [0.0, 2.0, 1.0]])
        >>> D.encode(Y).to_csr().toarray()
        array([[ 0.,  0., -4.],
               [ 0.,  2.,  0.]])
        >>> D.encode(da.from_array(Y), n_nonzero_coefs=2)
        <SparseCodes: 2 samples x 3 atoms, at most 2 nonzero, float64, lazy, 1 chunks>
        """
        embeddings = open_embeddings(Y)
        if embeddings.shape[1] != self.n_features:
            raise ValueError(f"Y has {embeddings.shape[1]} features, but the atoms have {self.n_features}")
        pursuit = self._pursuit(n_nonzero_coefs, encoder, nonnegative, rtol, refit)
        if not isinstance(group_wise, bool | np.bool_):
            raise TypeError(f"group_wise={group_wise!r} must be True or False")
        if group_wise:
            pursuit = replace(pursuit, group_sizes=self._groups_for(pursuit.n_nonzero_coefs))
        device = on_device(embeddings.data)
        if device:
            warn_of_slow_float64(self.dtype)
        shared = share_dictionary(self.atoms, self.mean, pursuit, device=device)
        parts = [(n_rows, encode_chunk(rows, shared, pursuit)) for n_rows, rows in read_in_order(embeddings.data)]
        k = pursuit.n_nonzero_coefs
        shapes = [(n_rows, k) for n_rows, _ in parts]
        codes = SparseCodes(
            _concatenate([indices for _, (indices, _) in parts], shapes, np.dtype(np.int32)),
            _concatenate([values for _, (_, values) in parts], shapes, self.dtype),
            self.n_atoms,
            {str(name): coord for name, coord in embeddings.coords.items() if coord.dims == ("sample",)},
        )
        return codes.compute() if isinstance(Y, np.ndarray) or on_device(Y) else codes

    def _pursuit(
        self,
        n_nonzero_coefs: int | None,
        encoder: Literal["mp", "omp"] | None,
        nonnegative: bool | None,
        rtol: float | None,
        refit: Literal["none", "lstsq"],
    ) -> Pursuit:
        return Pursuit(
            self._k(n_nonzero_coefs),
            encoder=self.encoder if encoder is None else encoder,
            nonnegative=self.nonnegative if nonnegative is None else nonnegative,
            rtol=self.rtol if rtol is None else rtol,
            refit=refit,
        )

    def _groups_for(self, k: int) -> tuple[int, ...]:
        if not self.group_sizes:
            raise ValueError("group_wise=True, but this dictionary has no groups: it was not learned with matryoshka")
        check_shares(self.group_sizes, k)
        return self.group_sizes

    def _k(self, n_nonzero_coefs: int | None) -> int:
        """The k that is given, or else the dictionary's own."""
        k = self.n_nonzero_coefs if n_nonzero_coefs is None else n_nonzero_coefs
        if k is None:
            raise ValueError("this dictionary has no n_nonzero_coefs of its own: pass n_nonzero_coefs")
        return self._check_k(k)

    def _check_k(self, k: int) -> int:
        if not isinstance(k, Integral):
            raise TypeError(f"n_nonzero_coefs={k!r} must be a whole number")
        if not 1 <= k <= self.n_atoms:
            raise ValueError(f"n_nonzero_coefs={k} must be between 1 and the number of atoms, {self.n_atoms}")
        return int(k)

    def _check_mean(self, mean: np.ndarray) -> np.ndarray:
        if mean.dtype.kind not in "fiu":
            raise TypeError(f"mean has dtype {mean.dtype}: it must be real numbers")
        if mean.shape != (self.n_features,):
            raise ValueError(f"mean has shape {mean.shape}: the atoms have {self.n_features} features")
        if not np.isfinite(mean).all():
            raise ValueError(f"mean of feature {np.flatnonzero(~np.isfinite(mean))[0]} is not finite")
        return mean.astype(self.dtype)

    def decode(self, codes: SparseCodes | csr_array | np.ndarray) -> np.ndarray | xr.DataArray:
        """Reconstruct embeddings from their codes: ``X D``, plus the mean where there is one.

        Parameters
        ----------
        codes : SparseCodes, or (n, m) SciPy matrix or array

        Returns
        -------
        (n, d) floats
            A NumPy array; for lazy codes a lazy xarray.DataArray over (sample, feature).

        Raises
        ------
        ValueError
            If the codes are of another number of atoms.

        Examples
        --------
        >>> import numpy as np
        >>> Dictionary(np.eye(3), mean=np.ones(3)).decode(np.array([[0.0, 2.0, 0.0]]))
        array([[1., 3., 1.]])
        """
        refuse_cupy(codes, "codes")
        if len(codes.shape) != 2:
            raise ValueError(f"the codes have shape {codes.shape}: they are two-dimensional, (samples, atoms)")
        if codes.shape[1] != self.n_atoms:
            raise ValueError(f"the codes are over {codes.shape[1]} atoms, but the dictionary has {self.n_atoms}")
        if not isinstance(codes, SparseCodes):
            matrix = codes if issparse(codes) else np.asarray(codes)
            return np.asarray(matrix @ self.atoms, dtype=self.dtype) + (0 if self.mean is None else self.mean)
        if isinstance(codes.indices, np.ndarray) or isinstance(codes.values, np.ndarray):
            return reconstruct(codes.indices, codes.values, self.atoms, self.mean)
        atoms = delayed(self.atoms, pure=False, traverse=False)
        indices = codes.indices.rechunk({1: -1})
        values = codes.values.rechunk(indices.chunks)
        pairs = zip(indices.to_delayed()[:, 0], values.to_delayed()[:, 0], strict=True)
        calls = [task(reconstruct, *pair, atoms, self.mean) for pair in pairs]
        shapes = [(n_rows, self.n_features) for n_rows in values.chunks[0]]
        return xr.DataArray(
            _concatenate(calls, shapes, self.dtype),
            dims=("sample", "feature"),
            coords=codes.coords,
            name="reconstruction",
        )

    def coherence(self) -> np.ndarray:
        """The largest ``|cos|`` of each atom with any other: (m,) floats, 0 for a single atom.

        Examples
        --------
        >>> import numpy as np
        >>> Dictionary(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])).coherence()
        array([0.6, 0.8, 0.8])
        """
        return metrics.coherence(self.atoms)

    def compare(self, other: "Dictionary | np.ndarray") -> xr.Dataset:
        """How far another dictionary has the same atoms, up to order and sign: see `dbksvd_dask.compare`.

        Examples
        --------
        >>> import numpy as np
        >>> Dictionary(np.eye(3)).compare(-np.eye(3)[[2, 0, 1]]).match.values
        array([1, 2, 0])
        """
        from dbksvd_dask.comparison import compare  # which builds on dictionaries

        return compare(self, other)

    def explore(self, codes: SparseCodes | str | os.PathLike[str], embeddings: Source | None = None) -> "AtomExplorer":
        """Explore in a notebook what the atoms stand for.

        A table of the atoms; for a chosen one the samples that use it most, its nearest atoms, and those that are used
        together with it; search by token; labels, which are kept in `labels`. The first time an index of the codes by
        atom is made, and kept beside their store: ``codes.atoms.zarr`` for ``codes.zarr``.

        Parameters
        ----------
        codes : SparseCodes, or path of a store of codes
            Codes of this dictionary; from a store they may be larger than memory, while lazy ones of no store are
            computed into memory.
        embeddings : path, array, xarray.DataArray or xarray.Dataset, optional
            The embeddings that were encoded. If their store has `context_tokens` and `vocabulary`, or their samples a
            coordinate `token`, samples are shown as these tokens: they are looked up by the coordinates of the codes,
            or if those have none, by the order of the samples.

        Returns
        -------
        AtomExplorer
            A widget.

        Raises
        ------
        ImportError
            If anywidget is not installed.
        FileNotFoundError
            If there is nothing at a path.
        TypeError, ValueError
            If these are no codes, or codes of another number of atoms, or the embeddings are of other samples.

        Examples
        --------
        >>> import numpy as np
        >>> D = Dictionary(np.eye(3), n_nonzero_coefs=1)
        >>> explorer = D.explore(D.encode(np.array([[3.0, 0.0, 1.0], [0.0, -2.0, 1.0]])))
        >>> explorer.atoms["n_samples"]
        2
        """
        from dbksvd_dask.widgets import AtomExplorer  # only here, for it is slow to import and may be missing

        if isinstance(codes, str | os.PathLike):
            codes = open_codes(codes)
        if not isinstance(codes, SparseCodes):
            raise TypeError(
                f"codes is a {type(codes).__name__}: pass what encode returns, or the path of a codes store"
            )
        if codes.n_atoms != self.n_atoms:
            raise ValueError(f"the codes are over {codes.n_atoms} atoms, but the dictionary has {self.n_atoms}")
        return AtomExplorer(self, codes, embeddings)

    def to_xarray(self) -> xr.Dataset:
        """Variables `atoms` over (atom, feature), `mean`, `group` and `label` where there are some, and the history.

        Examples
        --------
        >>> import numpy as np
        >>> Dictionary(np.eye(3), n_nonzero_coefs=2).to_xarray().atoms.sizes
        Frozen({'atom': 3, 'feature': 3})
        """
        dataset = self.history.assign(atoms=(("atom", "feature"), self.atoms))
        if self.mean is not None:
            dataset = dataset.assign(mean=("feature", self.mean))
        if self.group_sizes:
            dataset = dataset.assign(group=("atom", self.group))
        if self.labels:
            labels = check_labels(self.labels, self.n_atoms)
            texts = np.array([labels.get(atom, "") for atom in range(self.n_atoms)], np.dtypes.StringDType())
            dataset = dataset.assign(label=("atom", texts))
        return dataset.assign_attrs(
            n_nonzero_coefs=-1 if self.n_nonzero_coefs is None else self.n_nonzero_coefs,
            encoder=self.encoder,
            nonnegative=int(self.nonnegative),
            rtol=float(self.rtol),
            provenance=json.dumps(self.provenance),
        )

    def to_zarr(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the dictionary as a zarr store, which plain `xarray.open_zarr` opens.

        Under `path` there is in the end the whole store or what was there before.

        Parameters
        ----------
        path : path
            Local folder.
        overwrite : bool
            Replace a dictionary that is there.

        Raises
        ------
        FileExistsError
            If there is something at `path` that may not be replaced.

        Examples
        --------
        >>> import numpy as np, tempfile, xarray as xr
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Dictionary(np.eye(3)).to_zarr(f"{folder}/dictionary.zarr")
        ...     xr.open_zarr(f"{folder}/dictionary.zarr").atoms.shape
        (3, 3)
        """
        write_store(self.to_xarray(), path, "dictionary", overwrite=overwrite)


def _concatenate(calls: list[Lazy], shapes: list[tuple[int, int]], dtype: np.dtype) -> da.Array:
    """Arrays that tasks return, one below the other."""
    parts = zip(delayed_of(*calls), shapes, strict=True)
    return da.concatenate([da.from_delayed(part, shape, dtype) for part, shape in parts])


def open_dictionary(path: str | os.PathLike[str]) -> Dictionary:
    """Open a dictionary that `Dictionary.to_zarr` has written, or the last checkpoint of a fit.

    Parameters
    ----------
    path : path or URL
        Local folder, or any URL of fsspec.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If it is not a complete store of a dictionary.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Dictionary(np.eye(2), n_nonzero_coefs=1).to_zarr(f"{folder}/dictionary.zarr")
    ...     open_dictionary(f"{folder}/dictionary.zarr")
    <Dictionary: 2 atoms x 2 features, float64, k=1>
    """
    if store_kind(path) == KIND:
        return dictionary_of(open_checkpoint(path), path)
    return dictionary_of(open_store(path, "dictionary", _NEEDED).load(), path)


def dictionary_of(dataset: xr.Dataset, path: str | os.PathLike[str]) -> Dictionary:
    """The dictionary that a store holds; what else a checkpoint holds is left out.

    Parameters
    ----------
    dataset : xarray.Dataset
        As `Dictionary.to_xarray` makes it.
    path : path or URL
        What errors call it.

    Raises
    ------
    ValueError
        If it does not hold what a dictionary is made of.
    """
    k = dataset.attrs["n_nonzero_coefs"]
    history = dataset[[name for name, variable in dataset.data_vars.items() if "iteration" in variable.dims]]
    history.attrs = {}
    texts = dataset["label"].values.tolist() if "label" in dataset.data_vars else []
    try:
        provenance = json.loads(dataset.attrs["provenance"])
    except (TypeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the provenance of {path} is not JSON: {error}") from error
    return Dictionary(
        dataset.atoms.values,
        None if k < 0 else k,
        mean=dataset["mean"].values if "mean" in dataset.data_vars else None,
        group_sizes=np.bincount(dataset["group"].values).tolist() if "group" in dataset.data_vars else (),
        encoder=dataset.attrs["encoder"],
        nonnegative=bool(dataset.attrs["nonnegative"]),
        rtol=dataset.attrs["rtol"],
        history=history,
        provenance=provenance,
        labels={atom: text for atom, text in enumerate(texts) if text},
    )
