"""Dictionaries as one safetensors file."""

import json
import os

import numpy as np
import pytest
import xarray as xr
from dictionaries import assert_same, dictionary, real_rows
from safetensors.numpy import load_file, save_file

from dbksvd_dask import DBKSVD
from dbksvd_dask.interop import from_safetensors, to_safetensors


@pytest.mark.parametrize(
    "parameters",
    [
        {"labels": {2: "rivers — Flüsse"}, "provenance": {"seed": 4, "versions": {"numpy": "2.1"}}},
        {"nonnegative": True, "rtol": 0.1, "mean": False},
        {"encoder": "omp", "n_nonzero_coefs": None},
        {"group_sizes": [32, 64]},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_file_gives_the_dictionary_back(parameters, dtype, tmp_path):
    D = dictionary(dtype, **parameters)
    to_safetensors(D, tmp_path / "D.safetensors")
    assert_same(from_safetensors(tmp_path / "D.safetensors"), D)


def test_history_and_provenance_of_a_fit_come_back(tmp_path):
    Y = real_rows(dtype="float32")
    D = DBKSVD(8, 2, batch_size=50, max_iter=3, random_state=0).fit(Y, validation=Y[:20]).dictionary_
    to_safetensors(D, tmp_path / "D.safetensors")
    again = from_safetensors(str(tmp_path / "D.safetensors"))
    assert_same(again, D)
    xr.testing.assert_equal(again.history, D.history)
    again.to_zarr(tmp_path / "D.zarr")


def test_others_read_it_without_this_package(tmp_path):
    D = dictionary()
    to_safetensors(D, tmp_path / "D.safetensors")
    tensors = load_file(tmp_path / "D.safetensors")
    np.testing.assert_array_equal(tensors["atoms"], D.atoms)
    np.testing.assert_array_equal(tensors["mean"], D.mean)


def test_a_file_by_others_needs_nothing_but_atoms(tmp_path):
    save_file({"atoms": np.eye(3, dtype="float16")}, tmp_path / "D.safetensors")
    D = from_safetensors(tmp_path / "D.safetensors")
    assert (D.n_atoms, D.n_nonzero_coefs, D.dtype) == (3, None, np.float32)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"W_dec": np.eye(3)}, {}, "has no tensor 'atoms': it holds no dictionary"),
        ({"atoms": 2 * np.eye(3)}, {}, "makes no dictionary: atoms row 0 has norm 2"),
        ({"atoms": np.eye(3), "mean": np.ones(4)}, {}, r"mean has shape \(4,\): the atoms have 3 features"),
        ({"atoms": np.eye(3), "mean": np.ones((1, 3))}, {}, "'mean' has shape"),
        ({"atoms": np.eye(3, dtype=int)}, {}, "'atoms' has shape .* and dtype int64"),
        ({"atoms": np.eye(3)}, {"dictionary": "{"}, "the metadata of .* is no JSON"),
        ({"atoms": np.eye(3)}, {"dictionary": '{"n_nonzero_coefs": 9}'}, "n_nonzero_coefs=9 must be between"),
        ({"atoms": np.eye(3)}, {"dictionary": '{"labels": {"x": "y"}}'}, "makes no dictionary"),
        ({"atoms": np.eye(3)}, {"dictionary": '{"labels": [1]}'}, "makes no dictionary"),
        ({"atoms": np.eye(3)}, {"history": json.dumps({"data_vars": 3})}, "the history in .* cannot be read"),
    ],
)
def test_what_makes_no_dictionary_is_named(tensors, metadata, message, tmp_path):
    save_file(tensors, tmp_path / "D.safetensors", metadata)
    with pytest.raises(ValueError, match=message):
        from_safetensors(tmp_path / "D.safetensors")


def test_missing_and_cut_off_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        from_safetensors(tmp_path / "D.safetensors")
    to_safetensors(dictionary(), tmp_path / "D.safetensors")
    content = (tmp_path / "D.safetensors").read_bytes()
    for cut in (content[:-1], content[:20], b""):
        (tmp_path / "D.safetensors").write_bytes(cut)
        with pytest.raises(ValueError, match=r"not a readable \.safetensors file"):
            from_safetensors(tmp_path / "D.safetensors")


def test_only_a_dictionary_is_overwritten(tmp_path):
    path = tmp_path / "D.safetensors"
    to_safetensors(dictionary(), path)
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        to_safetensors(dictionary(), path)
    to_safetensors(dictionary(nonnegative=True), path, overwrite=True)
    assert from_safetensors(path).nonnegative
    save_file({"atoms": np.eye(3)}, path)
    with pytest.raises(FileExistsError, match="is not a dictionary of dbksvd_dask, so it is not overwritten"):
        to_safetensors(dictionary(), path, overwrite=True)
    assert os.listdir(tmp_path) == ["D.safetensors"]
