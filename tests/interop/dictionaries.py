"""Dictionaries for the tests of this folder: made of real embeddings, without a fit."""

from pathlib import Path

import numpy as np

from dbksvd_dask import Dictionary, open_embeddings

N_ATOMS, K = 96, 6
DATA = Path(__file__).parents[2] / "data" / "minilm-wikitext2.zarr"


def real_rows(n_samples=100, dtype="float64"):
    """Embeddings that the atoms of `dictionary` are not of."""
    return open_embeddings(DATA)[1000 : 1000 + n_samples].values.astype(dtype)


def dictionary(dtype="float64", mean=True, **parameters):
    """Unit rows of embeddings as atoms."""
    rows = open_embeddings(DATA)[:N_ATOMS].values.astype(dtype)
    middle = real_rows(dtype=dtype).mean(axis=0) if mean else None
    atoms = rows - (0 if middle is None else middle)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    return Dictionary(atoms, **({"n_nonzero_coefs": K} | parameters), mean=middle)


def assert_same(one, other):
    """The two dictionaries hold the same in all they hold."""
    assert (one.dtype, one.n_nonzero_coefs) == (other.dtype, other.n_nonzero_coefs)
    np.testing.assert_array_equal(one.atoms, other.atoms)
    assert (one.mean is None) == (other.mean is None)
    if one.mean is not None:
        np.testing.assert_array_equal(one.mean, other.mean)
    for name in ("encoder", "nonnegative", "rtol", "group_sizes", "labels", "provenance"):
        assert getattr(one, name) == getattr(other, name)
