"""open_embeddings of .pt files: tensors where they lie, and no code that comes with them."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from dbksvd_dask import open_embeddings
from dbksvd_dask.embeddings import chunking
from dbksvd_dask.embeddings.untrusted import RefusedStoreError

torch = pytest.importorskip("torch", reason="needs dbksvd-dask[harvest]")

N_WINDOWS, LENGTH, N_FEATURES = 10, 4, 3


def windows(dtype=torch.float32):
    return torch.randn((N_WINDOWS, LENGTH, N_FEATURES), generator=torch.Generator().manual_seed(0)).to(dtype)


def saebench(path, dtype=torch.float32):
    """As SAEBench's save_activations does: the tokens are a part of all of them."""
    tokens = torch.arange(100 * LENGTH).reshape(100, LENGTH)[20 : 20 + N_WINDOWS]
    torch.save({"activations": windows(dtype), "tokens": tokens}, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_windows_of_saebench_become_samples(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 100)
    Y = open_embeddings(saebench(tmp_path / "activations_1_of_1.pt", dtype))
    expected = windows(dtype).reshape(-1, N_FEATURES)
    assert Y.dims == ("sample", "feature")
    assert len(Y.chunks[0]) > 1
    assert Y.dtype == ("float32" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch."))
    np.testing.assert_array_equal(Y, expected.float() if dtype == torch.bfloat16 else expected)
    np.testing.assert_array_equal(Y.context, np.repeat(np.arange(N_WINDOWS), LENGTH))
    np.testing.assert_array_equal(Y.position, np.tile(np.arange(LENGTH), N_WINDOWS))
    np.testing.assert_array_equal(Y.token_id, np.arange(20 * LENGTH, (20 + N_WINDOWS) * LENGTH))


def test_a_tensor_alone_a_view_and_a_transposed_one(tmp_path):
    rows = windows().reshape(-1, N_FEATURES)
    for tensor, expected in [(rows, rows), (rows[5:9], rows[5:9]), (rows.T, rows.T)]:
        torch.save(tensor, tmp_path / "rows.pt")
        np.testing.assert_array_equal(open_embeddings(tmp_path / "rows.pt"), expected)
    np.testing.assert_array_equal(open_embeddings(tmp_path / "rows.pt", orientation="features"), rows)


@pytest.mark.parametrize("view", [lambda tokens: tokens[:, 1:], lambda tokens: tokens[:, 1:].T.contiguous().T])
def test_tokens_that_do_not_lie_side_by_side_are_left_out_with_a_warning(view, tmp_path):
    tokens = view(torch.arange(N_WINDOWS * (LENGTH + 1)).reshape(N_WINDOWS, LENGTH + 1))
    torch.save({"activations": windows(), "tokens": tokens}, tmp_path / "rows.pt")
    with pytest.warns(UserWarning, match=r"rows\.pt: 'tokens' .* left out: save tensor\.contiguous\(\)"):
        Y = open_embeddings(tmp_path / "rows.pt")
    assert sorted(Y.coords) == ["context", "position"]
    np.testing.assert_array_equal(Y, windows().reshape(-1, N_FEATURES))


def test_what_else_is_in_the_file_does_not_matter(tmp_path):
    rows = torch.nn.Parameter(windows()[0].bfloat16())
    content = {
        3: rows,
        "model": "gpt2",
        "layer": 3,
        "scale": 0.5,
        "shape": rows.shape,
        "dtype": rows.dtype,
        "more": [1],
    }
    torch.save(content, tmp_path / "rows.pt")
    for name in (None, "3"):
        Y = open_embeddings(tmp_path / "rows.pt", name=name)
        assert Y.name == "3"
        np.testing.assert_array_equal(Y, rows.detach().float())


class Harmful:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def saved(path, harmful):
    torch.save({"activations": windows(), "tokens": harmful}, path)


def saved_before_zip(path, harmful):
    torch.save({"activations": windows(), "tokens": harmful}, path, _use_new_zipfile_serialization=False)


def pickled(path, harmful):
    path.write_bytes(pickle.dumps({"activations": np.ones((4, 3)), "tokens": harmful}))


def pickled_in_a_zip(path, harmful):
    """The pickle of a real file, changed."""
    torch.save({"activations": windows()}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pickle.dumps(harmful, protocol=2) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("write", [saved, saved_before_zip, pickled, pickled_in_a_zip])
def test_what_could_run_code_is_refused_and_does_not_run(write, tmp_path):
    path = tmp_path / "activations.pt"
    write(path, Harmful(str(tmp_path / "harmed")))
    with pytest.raises(RefusedStoreError, match=r"activations\.pt .* may run code when it is read: it is not opened"):
        open_embeddings(path)
    assert not (tmp_path / "harmed").exists()


def test_the_harm_would_be_done_otherwise(tmp_path):
    pickled(tmp_path / "rows.pkl", Harmful(str(tmp_path / "harmed")))
    pickle.loads((tmp_path / "rows.pkl").read_bytes())
    assert (tmp_path / "harmed").exists()


def test_a_whole_model_is_refused(tmp_path):
    torch.save(torch.nn.Linear(3, 4), tmp_path / "model.pt")
    with pytest.raises(RefusedStoreError, match="something else than tensors"):
        open_embeddings(tmp_path / "model.pt")


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
    return path


def save(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: cut(saebench(p), 900), ValueError, r"rows\.pt is not a readable \.pt file: its directory.*copied"),
        (lambda p: cut(saebench(p), 0), ValueError, r"rows\.pt is not a readable \.pt file: it is empty"),
        (lambda p: save(p, {"a": torch.zeros(0, 3)}), ValueError, r"rows\.pt \('a'\) is empty"),
        (lambda p: save(p, {"a": torch.zeros(3, 0, 2)}), ValueError, r"rows\.pt \('a'\) is empty"),
        (
            lambda p: save(p, {"a": torch.zeros(3)}),
            ValueError,
            r"rows\.pt has no two- or three-dimensional .*'a' \(1-D",
        ),
        (lambda p: save(p, torch.zeros(3, dtype=int)), ValueError, r"rows\.pt has shape \(3,\)"),
        (lambda p: save(p, torch.zeros((3, 2), dtype=int)), TypeError, r"rows\.pt has dtype int64"),
        (
            lambda p: save(p, [1, 2]),
            ValueError,
            r"rows\.pt holds a list without tensors directly in it: embeddings are",
        ),
        (
            lambda p: save(p, {"a": {"b": torch.ones(3, 2)}}),
            ValueError,
            r"rows\.pt holds a dict without tensors directly",
        ),
        (lambda p: save(p, {"a": torch.ones(3, 2), "b": torch.ones(3, 2)}), ValueError, "name='a', name='b'"),
        (lambda p: save(p, windows()[:, 1:]), ValueError, r"rows\.pt is a view .* save tensor\.contiguous\(\)"),
    ],
)
def test_mistakes_are_named(make, error, message, tmp_path):
    path = make(tmp_path / "rows.pt")
    with pytest.raises(error, match=message):
        open_embeddings(path)


def test_a_file_that_is_cut_off_later_is_named_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 100)
    path = saebench(tmp_path / "rows.pt")
    Y = open_embeddings(path)
    cut(path, 400)
    with pytest.raises(ValueError, match=r"rows\.pt: rows \d+ to \d+ cannot be read \(rows\.pt is cut off\)"):
        Y.compute()
