"""Dictionaries of the authors of DB-KSVD: .npy files with atoms as columns."""

import numpy as np
import pytest
from dictionaries import dictionary

from dbksvd_dask.interop import from_npy

ATOMS = dictionary("float32", mean=False).atoms  # (96, 384)


@pytest.fixture
def saved(tmp_path):
    def save(array):
        np.save(tmp_path / "dictionary.npy", array, allow_pickle=True)
        return tmp_path / "dictionary.npy"

    return save


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("atoms", [None, "columns"])
def test_columns_become_atoms(saved, order, atoms):
    D = from_npy(saved(np.asarray(ATOMS.T, order=order)), 4, atoms=atoms)
    np.testing.assert_array_equal(D.atoms, ATOMS)
    assert (D.n_nonzero_coefs, D.provenance["atoms were"]) == (4, "columns")


def test_rows_of_unit_norm_are_atoms_as_they_are(saved):
    np.testing.assert_array_equal(from_npy(saved(ATOMS)).atoms, ATOMS)


def test_half_precision_has_unit_norm_to_its_rounding(saved):
    D = from_npy(saved(ATOMS.T.astype("float16")))
    assert (D.n_atoms, D.dtype) == (96, np.float32)


def test_a_mean_is_told(saved):
    np.testing.assert_array_equal(from_npy(saved(ATOMS.T), mean=np.ones(384)).mean, np.ones(384))


def test_where_both_have_unit_norm_it_has_to_be_told(saved):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    with pytest.raises(ValueError, match='both its rows and its columns have unit norm: say which are meant, atoms="r'):
        from_npy(saved(rotation))
    np.testing.assert_array_equal(from_npy(saved(rotation), atoms="columns").atoms, rotation.T)
    np.testing.assert_array_equal(from_npy(saved(rotation), atoms="rows").atoms, rotation)


@pytest.mark.parametrize(
    ("array", "parameters", "error", "message"),
    [
        (2 * ATOMS, {}, ValueError, "neither its rows nor its columns have unit norm: divide each atom by its norm"),
        (ATOMS, {"atoms": "columns"}, ValueError, 'the columns of .* but its rows have: pass atoms="rows"'),
        (2 * ATOMS, {"atoms": "rows"}, ValueError, "have no unit norm: divide each atom by its norm"),
        (ATOMS, {"atoms": "samples"}, ValueError, "atoms='samples' is unknown"),
        (ATOMS[0], {}, ValueError, "a dictionary has two dimensions"),
        (np.eye(3, dtype=int), {}, TypeError, "has dtype int64"),
        (np.full((3, 2), np.nan), {}, ValueError, "neither"),
        (np.array([{}]), {}, ValueError, "not a readable .npy file: Object arrays cannot be loaded"),
    ],
)
def test_what_is_no_dictionary_is_named(saved, array, parameters, error, message):
    with pytest.raises(error, match=message):
        from_npy(saved(array), **parameters)


def test_files_that_are_not_whole_are_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        from_npy(tmp_path / "dictionary.npy")
    path = saved(ATOMS)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"is not a readable \.npy file"):
        from_npy(path)
    np.savez(tmp_path / "several.npz", ATOMS)
    with pytest.raises(ValueError, match=r"is not a readable \.npy file"):
        from_npy(tmp_path / "several.npz")
