"""Folders of SAELens, written and read without SAELens."""

import json
import os

import numpy as np
import pytest
from dictionaries import assert_same, dictionary
from safetensors.numpy import load_file, save_file

from dbksvd_dask import Dictionary
from dbksvd_dask.interop import from_saelens, to_saelens

NAMES = {"model_name": "all-MiniLM-L6-v2", "hook_name": "blocks.3.hook_resid_pre"}
DECODER = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """Writes a SAE as SAELens would."""

    def write(decoder=DECODER, bias=None, **cfg):
        place = tmp_path / "sae"
        place.mkdir(exist_ok=True)
        bias = np.zeros(decoder.shape[1], decoder.dtype) if bias is None else bias
        save_file({"W_dec": decoder, "b_dec": bias}, place / "sae_weights.safetensors")
        cfg = {"architecture": "standard", "d_sae": decoder.shape[0], "d_in": decoder.shape[1]} | cfg
        (place / "cfg.json").write_text(json.dumps(cfg))
        return place

    return write


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("parameters", [{}, {"nonnegative": True}, {"mean": False}, {"group_sizes": [32, 64]}])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_folder_gives_the_dictionary_back(parameters, dtype, tmp_path):
    D = dictionary(dtype, **parameters, labels={1: "rivers"}, provenance={"seed": 4})
    to_saelens(D, tmp_path / "sae", **NAMES)
    assert_same(from_saelens(tmp_path / "sae"), D)


def test_signed_atoms_are_written_twice_and_nonnegative_ones_once(tmp_path):
    for D, factor in ((dictionary(), 2), (dictionary(nonnegative=True), 1)):
        to_saelens(D, tmp_path / str(factor), **NAMES)
        tensors = load_file(tmp_path / str(factor) / "sae_weights.safetensors")
        assert set(tensors) == {"W_dec", "b_dec"}  # SAELens takes no other
        np.testing.assert_array_equal(tensors["W_dec"], np.concatenate([D.atoms, -D.atoms])[: factor * D.n_atoms])
        np.testing.assert_array_equal(tensors["b_dec"], D.mean)


def test_heads_are_told_to_be_joined(tmp_path):
    to_saelens(dictionary(), tmp_path / "sae", model_name="gpt2", hook_name="blocks.3.attn.hook_z")
    assert json.loads((tmp_path / "sae" / "cfg.json").read_text())["reshape_activations"] == "hook_z"


def test_norms_of_a_decoder_are_taken_off(folder):
    D = from_saelens(folder(bias=np.full(4, 2.0, np.float32)))
    np.testing.assert_allclose(D.atoms, unit(DECODER), rtol=1e-6)
    np.testing.assert_array_equal(D.mean, np.full(4, 2.0))
    assert (D.nonnegative, D.n_nonzero_coefs, D.dtype) == (True, None, np.float32)


def test_zero_rows_of_a_decoder_are_left_out(folder):
    with_dead = np.insert(DECODER, [0, 3], 0, axis=0)
    with pytest.warns(UserWarning, match="2 of the 8 rows of W_dec are zero, and left out"):
        D = from_saelens(folder(with_dead))
    np.testing.assert_allclose(D.atoms, unit(DECODER), rtol=1e-6)
    assert D.provenance["left out"] == [0, 4]


def test_opposite_halves_are_one_signed_dictionary(folder):
    D = from_saelens(folder(np.concatenate([DECODER, -DECODER]), architecture="matching_pursuit", max_iterations=2))
    np.testing.assert_allclose(D.atoms, unit(DECODER), rtol=1e-6)
    assert (D.nonnegative, D.n_nonzero_coefs) == (False, 2)


@pytest.mark.parametrize(
    ("cfg", "k"),
    [
        ({"architecture": "topk", "k": 3}, 3),
        ({"architecture": "batchtopk", "k": 2.6}, 3),
        ({"architecture": "topk", "k": 100}, 6),  # of six latents
        ({"architecture": "matching_pursuit"}, 4),  # as many as there are features
        ({"architecture": "matching_pursuit", "max_iterations": 2}, 2),
        ({"architecture": "jumprelu"}, None),
        # before version 6
        ({"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}, 2),
    ],
)
def test_k_is_that_of_the_architecture(folder, cfg, k):
    assert from_saelens(folder(**cfg)).n_nonzero_coefs == k


def test_a_bias_that_is_no_mean_is_left_out(folder):
    bias = np.ones(4, np.float32)
    with pytest.warns(UserWarning, match="normalize_activations='layer_norm'"):
        assert from_saelens(folder(bias=bias, normalize_activations="layer_norm")).mean is None
    # matching pursuit does not add it to its output if it does not take it from its input
    cfg = {"architecture": "matching_pursuit", "apply_b_dec_to_input": False}
    assert from_saelens(folder(bias=bias, **cfg)).mean is None


def test_what_has_become_of_the_written_dictionary_counts(tmp_path):
    """Whoever goes on training it has other atoms than [D; −D] in the end."""
    to_saelens(dictionary("float32"), tmp_path / "sae", **NAMES)
    weights = tmp_path / "sae" / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["W_dec"][0] *= 3
    save_file(tensors, weights)
    D = from_saelens(tmp_path / "sae")
    assert (D.n_atoms, D.nonnegative) == (192, True)


def test_other_norms_than_those_written_are_taken_off(tmp_path):
    """Nonnegative atoms are one row each: nothing but the norms tells that SAELens has trained on."""
    D = dictionary("float32", nonnegative=True)
    to_saelens(D, tmp_path / "sae", **NAMES)
    weights = tmp_path / "sae" / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["W_dec"] *= 3
    save_file(tensors, weights)
    np.testing.assert_allclose(from_saelens(tmp_path / "sae").atoms, D.atoms, atol=1e-6)


def test_a_nonnegative_dictionary_may_have_opposite_atoms(tmp_path):
    half = unit(DECODER).astype(np.float32)
    D = Dictionary(np.concatenate([half, -half]), 2, nonnegative=True, labels={7: "rivers"})
    to_saelens(D, tmp_path / "sae", **NAMES)
    assert_same(from_saelens(tmp_path / "sae"), D)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"architecture": "transcoder"}, "architecture 'transcoder', whose decoder is no dictionary"),
        ({"architecture": "temporal"}, "'temporal'"),
        ({"architecture": ["topk"]}, "architecture"),
        ({"d_in": 5}, "cfg.json tells of d_sae=6, d_in=5, but W_dec is"),
        ({"architecture": "topk", "k": "3"}, "has k='3': it must be a number of at least 1"),
        ({"architecture": "topk", "k": 0}, "has k=0"),
        ({"normalize_activations": "covariance_whitening"}, "whitened embeddings"),
        ({"matryoshka_widths": [2, "4", 6]}, r"has matryoshka_widths=\[2, '4', 6\]: they must be whole numbers"),
        ({"metadata": {"dbksvd_dask": {"nonnegative": True, "encoder": "lasso"}}}, "makes no dictionary: encoder='las"),
    ],
)
def test_what_cannot_be_a_dictionary_is_named(folder, cfg, message):
    decoder = unit(DECODER).astype(np.float32)
    with pytest.raises(ValueError, match=message):
        from_saelens(folder(decoder, **cfg))


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (np.zeros((3, 2), np.float32), "all rows of W_dec are zero"),
        (np.full((3, 2), np.nan, np.float32), "row 0 of W_dec is not finite"),
        (np.ones((3, 2), np.int32), "'W_dec' has shape .* and dtype int32"),
        (np.ones((3, 2, 2), np.float32), "'W_dec' has shape"),
    ],
)
def test_a_decoder_that_is_none_is_named(folder, decoder, message):
    with pytest.raises(ValueError, match=message):
        from_saelens(folder(decoder, np.zeros(2, np.float32)))


def test_missing_and_cut_off_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        from_saelens(tmp_path / "nowhere")
    place = folder()
    weights, content = place / "sae_weights.safetensors", (place / "sae_weights.safetensors").read_bytes()
    weights.write_bytes(content[:-10])
    with pytest.raises(ValueError, match="was it still being written"):
        from_saelens(place)
    save_file({"W_enc": DECODER}, weights)
    with pytest.raises(ValueError, match="has no tensor 'W_dec'"):
        from_saelens(place)
    weights.write_bytes(content)
    for text, message in (('{"architecture": "top', "is no JSON"), ("[1]", "holds no JSON object, but list")):
        (place / "cfg.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            from_saelens(place)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no sae_weights\.safetensors"):
        from_saelens(place)


def test_pickles_are_not_opened(tmp_path):
    (tmp_path / "sae.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(FileNotFoundError, match=r"sae\.pt may be pickles, which could run code and are not opened"):
        from_saelens(tmp_path)


def test_names_and_k_have_to_be_there(tmp_path):
    without_k = Dictionary(np.eye(3))
    with pytest.raises(ValueError, match="no n_nonzero_coefs of its own: pass n_nonzero_coefs"):
        to_saelens(without_k, tmp_path / "sae", **NAMES)
    with pytest.raises(ValueError, match="n_nonzero_coefs=4 must be between 1 and the number of atoms, 3"):
        to_saelens(without_k, tmp_path / "sae", **NAMES, n_nonzero_coefs=4)
    with pytest.raises(ValueError, match="hook_name is empty"):
        to_saelens(without_k, tmp_path / "sae", model_name="gpt2", hook_name="", n_nonzero_coefs=1)
    assert not any(tmp_path.iterdir())


def test_only_a_folder_of_saelens_is_overwritten(tmp_path):
    first, second = dictionary(), dictionary(nonnegative=True)
    to_saelens(first, tmp_path / "sae", **NAMES)
    with pytest.raises(FileExistsError, match="exists: choose another path, or pass overwrite=True"):
        to_saelens(second, tmp_path / "sae", **NAMES)
    assert_same(from_saelens(tmp_path / "sae"), first)
    to_saelens(second, tmp_path / "sae", **NAMES, overwrite=True)
    assert_same(from_saelens(tmp_path / "sae"), second)
    (tmp_path / "sae" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a SAELens folder, so it is not overwritten"):
        to_saelens(first, tmp_path / "sae", **NAMES, overwrite=True)
    assert os.listdir(tmp_path) == ["sae"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    first = dictionary()
    to_saelens(first, tmp_path / "sae", **NAMES)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dbksvd_dask.interop.tensors.Path.write_bytes", fail)
    with pytest.raises(OSError, match="what was there before is unchanged: make room there"):
        to_saelens(dictionary(nonnegative=True), tmp_path / "sae", **NAMES, overwrite=True)
    assert os.listdir(tmp_path) == ["sae"]
    assert_same(from_saelens(tmp_path / "sae"), first)
