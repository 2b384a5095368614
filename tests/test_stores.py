"""Dictionaries and codes as zarr: the same again when opened, legible to anybody, and written whole or not at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
import weakref

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from dbksvd_dask import DBKSVD, Dictionary, SparseCodes, open_codes, open_dictionary, open_embeddings
from dbksvd_dask.batches import ROWS_PER_TASK

N_SAMPLES, N_FEATURES, N_ATOMS, K = 120, 6, 8, 3


def example(n_samples=N_SAMPLES, dtype="float32"):
    return np.random.default_rng(0).standard_normal((n_samples, N_FEATURES)).astype(dtype)


@pytest.fixture(scope="module")
def learned():
    Y = example()
    return DBKSVD(N_ATOMS, K, batch_size=50, max_iter=4, center=True, random_state=0).fit(Y, validation=Y).dictionary_


def dictionary(seed=0, **parameters):
    atoms = np.random.default_rng(seed).standard_normal((N_ATOMS, N_FEATURES)).astype("float32")
    return Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True), **({"n_nonzero_coefs": K} | parameters))


def lazy_codes(n_samples=N_SAMPLES, rows=50):
    arrays = arrays_of(dictionary().encode(example(n_samples)))
    return SparseCodes(*(da.from_array(array, chunks=(rows, -1)) for array in arrays), N_ATOMS)


def arrays_of(codes):
    return codes.indices, codes.values


def assert_same_dictionary(opened, written):
    np.testing.assert_array_equal(opened.atoms, written.atoms)
    np.testing.assert_equal(opened.mean, written.mean)
    assert opened.dtype == written.dtype
    for name in ("n_nonzero_coefs", "encoder", "nonnegative", "rtol", "provenance"):
        assert getattr(opened, name) == getattr(written, name), name
        assert type(getattr(opened, name)) is type(getattr(written, name)), name
    xr.testing.assert_identical(opened.history, written.history)


def assert_same_codes(opened, written):
    opened, written = opened.compute(), written.compute()
    np.testing.assert_array_equal(opened.indices, written.indices)
    np.testing.assert_array_equal(opened.values, written.values)
    assert (opened.indices.dtype, opened.dtype, opened.n_atoms) == (np.int32, written.dtype, written.n_atoms)


def everything_in(folder):
    """What lies in a folder, hidden or not, with contents."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"n_nonzero_coefs": None},
        {"n_nonzero_coefs": N_ATOMS},
        {"mean": np.arange(N_FEATURES) / 7},
        {"encoder": "omp", "rtol": 0.1},
        {"nonnegative": True},
        {"provenance": {"layer": 12, "model": "gemma", "tags": ["a", "ß"], "nested": {"x": None, "y": 0.1}}},
        {"history": xr.Dataset({"loss": ("iteration", [0.5, 0.25])}, coords={"iteration": [0, 1]})},
    ],
    ids=lambda parameters: "-".join(parameters) or "plain",
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_dictionary_is_the_same_when_opened(dtype, parameters, tmp_path):
    written = Dictionary(dictionary().atoms.astype(dtype), **({"n_nonzero_coefs": K} | parameters))
    written.to_zarr(tmp_path / "dictionary.zarr")
    assert_same_dictionary(open_dictionary(tmp_path / "dictionary.zarr"), written)


def test_a_learned_dictionary_is_the_same_when_opened_and_encodes_the_same(learned, tmp_path):
    learned.to_zarr(tmp_path / "dictionary.zarr")
    opened = open_dictionary(tmp_path / "dictionary.zarr")
    assert_same_dictionary(opened, learned)
    assert_same_codes(opened.encode(example()), learned.encode(example()))


def test_what_was_opened_can_be_written_again(learned, tmp_path):
    learned.to_zarr(tmp_path / "first.zarr")
    open_dictionary(tmp_path / "first.zarr").to_zarr(tmp_path / "second.zarr")
    assert_same_dictionary(open_dictionary(tmp_path / "second.zarr"), learned)
    lazy_codes().to_zarr(tmp_path / "codes.zarr")
    open_codes(tmp_path / "codes.zarr").to_zarr(tmp_path / "again.zarr")
    assert_same_codes(open_codes(tmp_path / "again.zarr"), lazy_codes())


@pytest.mark.parametrize("make", [lambda: lazy_codes().compute(), lazy_codes, lambda: lazy_codes(1)])
def test_codes_are_the_same_when_opened(make, tmp_path):
    make().to_zarr(tmp_path / "codes.zarr")
    assert_same_codes(open_codes(tmp_path / "codes.zarr"), make())


def test_codes_of_zero_rows_are_the_same_when_opened(tmp_path):
    written = dictionary().encode(np.zeros((5, N_FEATURES), "float32"))
    written.to_zarr(tmp_path / "codes.zarr")
    assert_same_codes(open_codes(tmp_path / "codes.zarr"), written)


def test_codes_of_a_single_atom_are_the_same_when_opened(tmp_path):
    """All indices are 0, which zarr might take for nothing."""
    written = Dictionary(np.eye(1, N_FEATURES), 1).encode(example())
    written.to_zarr(tmp_path / "codes.zarr")
    assert_same_codes(open_codes(tmp_path / "codes.zarr"), written)


@pytest.mark.parametrize("chunks", [(7, 50, 63), (1,) * 3 + (117,), (119, 1)])
def test_codes_in_chunks_of_any_sizes_are_written(chunks, tmp_path):
    indices, values = (array.rechunk((chunks, -1)) for array in arrays_of(lazy_codes()))
    SparseCodes(indices, values, N_ATOMS).to_zarr(tmp_path / "codes.zarr")
    assert_same_codes(open_codes(tmp_path / "codes.zarr"), lazy_codes())


def test_indices_and_values_may_be_chunked_differently(tmp_path):
    indices, values = arrays_of(lazy_codes())
    SparseCodes(indices.rechunk((40, -1)), values.rechunk((60, 1)), N_ATOMS).to_zarr(tmp_path / "codes.zarr")
    assert_same_codes(open_codes(tmp_path / "codes.zarr"), lazy_codes())


def test_codes_are_opened_lazily(tmp_path):
    lazy_codes().to_zarr(tmp_path / "codes.zarr")
    with dask.config.set(scheduler=refuse_to_compute):
        opened = open_codes(tmp_path / "codes.zarr")
        assert isinstance(opened.indices, da.Array)
        assert isinstance(opened.values, da.Array)
        assert opened.indices.chunks[0] == opened.values.chunks[0] == (50, 50, 20)


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("something was computed")


@pytest.mark.parametrize("path", [str, lambda path: path, lambda path: f"{path}/"], ids=["str", "Path", "slash"])
def test_parent_folders_are_made_and_paths_may_be_relative(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dictionary().to_zarr(path((tmp_path / "a" / "b" / "dictionary.zarr").relative_to(tmp_path)))
    assert_same_dictionary(open_dictionary(tmp_path / "a" / "b" / "dictionary.zarr"), dictionary())


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """Shells leave it alone in --output=~/dictionary.zarr."""
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    dictionary(1).to_zarr("~/dictionary.zarr")
    dictionary(2).to_zarr("~/dictionary.zarr", overwrite=True)
    for path in ("~/dictionary.zarr", tmp_path / "home" / "dictionary.zarr"):
        assert_same_dictionary(open_dictionary(path), dictionary(2))
    assert [entry.name for entry in (tmp_path / "home").iterdir()] == ["dictionary.zarr"]
    assert everything_in(tmp_path / "elsewhere") == {}


# --- legible to anybody ----------------------------------------------------------------------------------------------


def test_plain_xarray_opens_a_dictionary_and_shows_everything(learned, tmp_path):
    learned.to_zarr(tmp_path / "dictionary.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = xr.open_zarr(tmp_path / "dictionary.zarr").load()
    assert store.atoms.dims == ("atom", "feature")
    np.testing.assert_array_equal(store.atoms, learned.atoms)
    assert store["mean"].dims == ("feature",)
    np.testing.assert_array_equal(store["mean"], learned.mean)
    assert store.iteration.values.tolist() == [0, 1, 2, 3]
    assert store.validation_relative_error.dims == ("iteration",)
    np.testing.assert_array_equal(store.validation_relative_error, learned.history.validation_relative_error)
    assert "pursuit" in store.stage.values.tolist()
    assert store.attrs["n_nonzero_coefs"] == K
    assert (store.attrs["encoder"], store.attrs["nonnegative"], store.attrs["rtol"]) == ("mp", 0, 0.0)
    assert (store.attrs["format"], store.attrs["format_version"]) == ("dbksvd_dask dictionary", 1)
    assert store.attrs["written_by"].startswith("dbksvd_dask ")
    provenance = json.loads(store.attrs["provenance"])
    assert provenance["parameters"]["n_components"] == N_ATOMS
    assert provenance["parameters"]["center"] is True
    assert (provenance["n_iter"], provenance["stopped_by"]) == (4, "max_iter")
    assert set(provenance["versions"]) == {"dbksvd-dask", "dask", "numba", "numpy", "scipy"}


def test_plain_xarray_opens_codes_and_shows_everything(tmp_path):
    lazy_codes().to_zarr(tmp_path / "codes.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = xr.open_zarr(tmp_path / "codes.zarr").load()
    assert store["indices"].dims == store["values"].dims == ("sample", "slot")
    assert store.sizes == {"sample": N_SAMPLES, "slot": K}
    assert store.attrs["n_atoms"] == N_ATOMS
    assert (store.attrs["format"], store.attrs["format_version"]) == ("dbksvd_dask codes", 1)


@pytest.mark.parametrize(
    ("parameter", "given", "kept"),
    [
        ("n_components", np.int64(N_ATOMS), N_ATOMS),
        ("n_nonzero_coefs", np.int32(K), K),
        ("rtol", np.float32(0.25), 0.25),
        ("center", np.True_, True),
        ("dtype", np.float32, "float32"),
        ("dtype", np.dtype("float64"), "float64"),
        ("inner_batch_size", None, None),
        ("init", "random", "random"),
        ("random_state", 3, 3),
    ],
)
def test_provenance_keeps_the_values_of_the_parameters(parameter, given, kept):
    model = DBKSVD(N_ATOMS, K, max_iter=1).set_params(**{parameter: given}).fit(example())
    assert json.loads(json.dumps(model.dictionary_.provenance))["parameters"][parameter] == kept


# --- coordinates -----------------------------------------------------------------------------------------------------


def with_coordinates():
    number = np.arange(N_SAMPLES)
    split = np.where(number % 3 == 0, "validation", "train")
    coordinates = {
        "document": number // 10,
        "weight": number / 7,
        "special": number % 5 == 0,
        "date": np.datetime64("2025-05-27", "ns") + number.astype("timedelta64[D]"),
        "split": split,
    }
    return xr.DataArray(
        example(),
        dims=("sample", "feature"),
        coords={name: ("sample", values) for name, values in coordinates.items()},
        name="embeddings",
    )


def in_memory(folder):
    return with_coordinates()


def on_dask(folder):
    return with_coordinates().chunk(sample=50)


def in_zarr(**options):
    def write_and_open(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr 3 has no specification of some of the data types yet
            on_dask(folder).to_dataset().to_zarr(folder / "embeddings.zarr", **options)
        return open_embeddings(folder / "embeddings.zarr")

    return write_and_open


SHARDED = {"embeddings": {"chunks": (25, N_FEATURES), "shards": (50, N_FEATURES)}} | {
    name: {"chunks": (25,), "shards": (50,)} for name in ("document", "weight", "special")
}


@pytest.mark.parametrize(
    "source",
    [in_memory, on_dask, in_zarr(), in_zarr(zarr_format=2), in_zarr(encoding=SHARDED)],
    ids=["memory", "dask", "zarr", "zarr-2", "sharded"],
)
@pytest.mark.parametrize(
    "rows",
    [
        slice(None),
        slice(7, None),
        slice(None, None, -3),
        np.flatnonzero(with_coordinates().split == "train"),
    ],
    ids=["all", "from-7", "every-third-backwards", "train"],
)
def test_coordinates_of_the_samples_survive(source, rows, tmp_path):
    Y = source(tmp_path).isel(sample=rows)
    dictionary().encode(Y).to_zarr(tmp_path / "codes.zarr")
    opened = open_codes(tmp_path / "codes.zarr")
    expected = with_coordinates().isel(sample=rows)
    assert set(opened.coords) == set(expected.coords)
    for name, coordinate in expected.coords.items():
        assert opened.coords[name].dims == ("sample",)
        assert opened.coords[name].values.tolist() == coordinate.values.tolist(), name
    assert_same_codes(opened, dictionary().encode(expected.values))


@pytest.mark.parametrize("dtype", ["U", object, np.dtypes.StringDType()], ids=["fixed", "object", "StringDType"])
@pytest.mark.parametrize("lazy", [False, True], ids=["memory", "dask"])
def test_text_of_any_kind_is_a_coordinate(lazy, dtype, tmp_path):
    words = np.array(["", "a", "tøken", "🙂", "long " * 20] * (N_SAMPLES // 5)).astype(dtype)
    Y = xr.DataArray(example(), dims=("sample", "feature"), coords={"word": ("sample", words)})
    Y = Y.chunk(sample=50) if lazy else Y
    dictionary().encode(Y).to_zarr(tmp_path / "codes.zarr")
    assert open_codes(tmp_path / "codes.zarr").coords["word"].values.tolist() == words.tolist()
    assert xr.open_zarr(tmp_path / "codes.zarr").word.values.tolist() == words.tolist()


def test_the_index_of_the_samples_survives(tmp_path):
    names = [f"sample {i}" for i in range(N_SAMPLES)]
    Y = xr.DataArray(example(), dims=("sample", "feature"), coords={"sample": names})
    dictionary().encode(Y).to_zarr(tmp_path / "codes.zarr")
    opened = open_codes(tmp_path / "codes.zarr").to_xarray()
    np.testing.assert_array_equal(opened["indices"].sel(sample="sample 17"), dictionary().encode(example()).indices[17])


def test_a_coordinate_may_be_called_like_a_variable_of_the_store_or_says_that_it_must_not(tmp_path):
    Y = xr.DataArray(example(), dims=("sample", "feature"), coords={"values": ("sample", np.arange(N_SAMPLES))})
    try:
        dictionary().encode(Y).to_zarr(tmp_path / "codes.zarr")
    except ValueError as error:
        assert "'values'" in str(error) and "rename" in str(error)  # noqa: PT017, PT018
    else:
        assert open_codes(tmp_path / "codes.zarr").coords["values"].values.tolist() == list(range(N_SAMPLES))


# --- chunk by chunk --------------------------------------------------------------------------------------------------


class Chunks:
    """Arrays that are alive, and the most that were at once."""

    def __init__(self):
        self.alive = self.most = self.made = 0
        self._lock = threading.RLock()  # reentrant: a garbage collection may free a chunk while another is counted

    def track(self, array):
        with self._lock:
            self.made += 1
            self.alive += 1
            self.most = max(self.most, self.alive)
        weakref.finalize(array, self._freed)
        return array

    def _freed(self):
        with self._lock:
            self.alive -= 1


N_CHUNKS = 30


@pytest.mark.parametrize("num_workers", [1, 2])
def test_lazy_codes_are_written_chunk_by_chunk(num_workers, tmp_path):
    chunks = Chunks()

    def lazily(dtype):
        ones = da.ones((N_CHUNKS * 10, K), chunks=(10, K), dtype=dtype)
        return ones.map_blocks(lambda block: chunks.track(block.copy()), dtype=dtype, meta=np.empty((0, 0), dtype))

    with dask.config.set(scheduler="threads", num_workers=num_workers):
        SparseCodes(lazily("int32"), lazily("float32"), N_ATOMS).to_zarr(tmp_path / "codes.zarr")
    assert chunks.made == 2 * N_CHUNKS
    assert chunks.most <= N_CHUNKS // 3
    assert chunks.alive == 0


@pytest.mark.parametrize("num_workers", [1, 4])
def test_embeddings_are_read_encoded_and_written_chunk_by_chunk(num_workers, tmp_path):
    """Also while one worker makes the Gram matrix, and the others have nothing to do but read."""
    chunks = Chunks()
    Y = tracked_embeddings(chunks)
    angles = np.linspace(0, 3, 1024)
    circle = Dictionary(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype("float32"), 1)
    with dask.config.set(scheduler="threads", num_workers=num_workers):
        circle.encode(Y).to_zarr(tmp_path / "codes.zarr")
    assert chunks.made == N_CHUNKS  # read once, though indices and values are two arrays
    assert chunks.most <= N_CHUNKS // 3
    assert open_codes(tmp_path / "codes.zarr").shape == (len(Y), 1024)


def tracked_embeddings(chunks):
    return da.ones((N_CHUNKS * ROWS_PER_TASK, 2), chunks=(ROWS_PER_TASK, 2), dtype="float32").map_blocks(
        lambda block: chunks.track(block.copy()), meta=np.empty((0, 0), "float32")
    )


@pytest.mark.parametrize("lazy", [False, True], ids=["memory", "dask"])
def test_coordinates_in_one_piece_do_not_put_the_codes_in_one(lazy, tmp_path):
    """Stores keep the embeddings in many chunks and the small coordinates in one."""
    chunks = Chunks()
    document = np.arange(N_CHUNKS * ROWS_PER_TASK) // 100
    coordinate = da.from_array(document, chunks=-1) if lazy else document
    Y = tracked_embeddings(chunks)
    Y = xr.DataArray(Y, dims=("sample", "feature"), coords={"document": ("sample", coordinate)})
    with dask.config.set(scheduler="threads", num_workers=1):
        Dictionary(np.eye(2, dtype="float32"), 1).encode(Y).to_zarr(tmp_path / "codes.zarr")
    opened = open_codes(tmp_path / "codes.zarr")
    assert opened.indices.chunksize[0] == opened.values.chunksize[0] == ROWS_PER_TASK
    np.testing.assert_array_equal(opened.coords["document"], document)
    assert chunks.most <= N_CHUNKS // 3


# --- whole or not at all ---------------------------------------------------------------------------------------------


def codes_that_fail_with(failure, where=1):
    def fail(block, block_info=None):
        if block_info and block_info[0]["chunk-location"][0] == where:
            raise failure
        return block

    indices, values = arrays_of(lazy_codes())
    return SparseCodes(indices, values.map_blocks(fail, meta=values._meta), N_ATOMS)


@pytest.mark.parametrize("failure", [RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("there_before", [False, True])
def test_what_fails_while_writing_leaves_what_was_there_before(failure, there_before, tmp_path):
    path = tmp_path / "codes.zarr"
    if there_before:
        lazy_codes(30).to_zarr(path)
    before = everything_in(tmp_path)
    with pytest.raises(type(failure)):
        codes_that_fail_with(failure).to_zarr(path, overwrite=there_before)
    assert everything_in(tmp_path) == before


def test_a_row_that_is_not_finite_leaves_no_codes(tmp_path):
    Y = example()
    Y[100] = np.nan
    with pytest.raises(ValueError, match="row 100"):
        dictionary().encode(da.from_array(Y, chunks=(50, -1))).to_zarr(tmp_path / "codes.zarr")
    assert everything_in(tmp_path) == {}


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


KILLED_WHILE_WRITING_CODES = """
import os, signal, sys
import dask.array as da, numpy as np
from dbksvd_dask import SparseCodes

def kill(block, block_info=None):
    if block_info and block_info[0]["chunk-location"][0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return block

ones = da.ones((60, 2), chunks=(10, 2), dtype="float32")
values = ones.map_blocks(kill, meta=ones._meta)
print("writing", flush=True)
SparseCodes(da.ones((60, 2), chunks=(10, 2), dtype="int32"), values, n_atoms=4).to_zarr(sys.argv[1], overwrite=True)
"""


@pytest.mark.parametrize("there_before", [False, True])
def test_codes_killed_while_writing_are_the_old_ones_or_none(there_before, tmp_path):
    path = tmp_path / "codes.zarr"
    if there_before:
        lazy_codes(30).to_zarr(path)
    killed = run(KILLED_WHILE_WRITING_CODES, path)
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "writing\n"), killed.stderr
    if there_before:
        assert_same_codes(open_codes(path), lazy_codes(30))
    else:
        with pytest.raises(FileNotFoundError):
            open_codes(path)
    leftovers = [entry.name for entry in tmp_path.iterdir() if entry != path]
    assert leftovers, "the process was killed before it wrote anything"
    assert all(name.startswith(".codes.zarr.") for name in leftovers)
    lazy_codes().to_zarr(path, overwrite=there_before)
    assert_same_codes(open_codes(path), lazy_codes())


KILLED_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
import numpy as np
from dbksvd_dask import Dictionary

STEPS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")

def kill_at(step):
    steps = iter(range(step))

    def hook(event, arguments):
        if event in STEPS and next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)

new = Dictionary(np.eye(4, 6)[::-1], 2)
for number, folder in enumerate(sorted(Path(sys.argv[1]).iterdir())):
    child = os.fork()
    if child == 0:
        kill_at(number)
        new.to_zarr(folder / "dictionary.zarr", overwrite=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else "done" if status == 0 else "failed", flush=True)
    if status == 0:
        break
"""


@pytest.mark.parametrize("there_before", [False, True])
def test_a_dictionary_killed_at_any_step_of_writing_is_the_old_or_the_new_one(there_before, tmp_path):
    """Killed before the first change of the file system, before the second, and so on until the write comes through."""
    old, new = Dictionary(np.eye(4, 6), 2), Dictionary(np.eye(4, 6)[::-1], 2)
    folders = [tmp_path / f"{step:03}" for step in range(100)]
    for folder in folders:
        folder.mkdir()
        if there_before and folder is folders[0]:
            old.to_zarr(folder / "dictionary.zarr")
        elif there_before:
            shutil.copytree(folders[0] / "dictionary.zarr", folder / "dictionary.zarr")
    outcomes = run(KILLED_AT_EVERY_STEP, tmp_path)
    lines = outcomes.stdout.split()
    assert lines == ["killed"] * (len(lines) - 1) + ["done"], (lines, outcomes.stderr)
    assert len(lines) > 5

    found = []
    for folder in folders[: len(lines)]:
        try:
            opened = open_dictionary(folder / "dictionary.zarr")
        except FileNotFoundError:
            found.append("nothing")
        else:
            found.append("old" if np.array_equal(opened.atoms, old.atoms) else "new")
            assert_same_dictionary(opened, old if found[-1] == "old" else new)
        assert all(name.name.startswith(".") for name in folder.iterdir() if name.name != "dictionary.zarr")
    before = "old" if there_before else "nothing"
    assert found == [before] * found.count(before) + ["new"] * found.count("new")
    assert found[-1] == "new"


# --- overwriting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [lambda: dictionary(1), lambda: lazy_codes(30)], ids=["dictionary", "codes"])
def test_a_store_of_the_same_kind_is_replaced_if_asked_for(there, tmp_path):
    path = tmp_path / "store.zarr"
    there().to_zarr(path)
    if isinstance(there(), Dictionary):
        dictionary(2).to_zarr(path, overwrite=True)
        assert_same_dictionary(open_dictionary(path), dictionary(2))
    else:
        lazy_codes().to_zarr(path, overwrite=True)
        assert_same_codes(open_codes(path), lazy_codes())
    assert [entry.name for entry in tmp_path.iterdir()] == ["store.zarr"]


def a_dictionary(path):
    dictionary(1).to_zarr(path)


def some_codes(path):
    lazy_codes(30).to_zarr(path)


def some_embeddings(path):
    da.to_zarr(da.ones((3, 2)), path)


def a_folder(path):
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def a_file(path):
    path.write_text("years of work")


def a_dangling_link(path):
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("there", "written"),
    [
        *((there, dictionary) for there in (some_codes, some_embeddings, a_folder, a_file, a_dangling_link)),
        *((there, lazy_codes) for there in (a_dictionary, some_embeddings, a_folder, a_file, a_dangling_link)),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_else_is_ever_replaced(there, written, overwrite, tmp_path):
    there(tmp_path / "store.zarr")
    before = everything_in(tmp_path)
    with pytest.raises(FileExistsError, match=r"store\.zarr"):
        written().to_zarr(tmp_path / "store.zarr", overwrite=overwrite)
    assert everything_in(tmp_path) == before


def test_a_store_can_be_replaced_by_what_is_read_from_it(tmp_path):
    path = tmp_path / "codes.zarr"
    lazy_codes().to_zarr(path)
    opened = open_codes(path)
    SparseCodes(opened.indices, opened.values * 2, opened.n_atoms).to_zarr(path, overwrite=True)
    np.testing.assert_array_equal(open_codes(path).values, 2 * lazy_codes().values)


def test_a_store_behind_a_link_can_be_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "latest.zarr").symlink_to("disk/dictionary.zarr")
    dictionary(1).to_zarr(tmp_path / "disk" / "dictionary.zarr")
    dictionary(2).to_zarr(tmp_path / "latest.zarr", overwrite=True)
    assert_same_dictionary(open_dictionary(tmp_path / "latest.zarr"), dictionary(2))
    assert not list(tmp_path.rglob(".*"))


def test_a_folder_that_takes_no_file_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file is not a folder: .*store\.zarr cannot be written"):
        dictionary().to_zarr(tmp_path / "file" / "store.zarr")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_refused_before_anything_is_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="may not write to"):
        dictionary().to_zarr(tmp_path / "deeper" / "store.zarr")


def test_levels_of_a_multi_index_become_coordinates(tmp_path):
    index = pd.MultiIndex.from_product([range(5), range(4)], names=["document", "position"])
    rows = xr.DataArray(np.random.default_rng(0).standard_normal((20, N_FEATURES)), dims=("sample", "feature"))
    rows = rows.assign_coords(xr.Coordinates.from_pandas_multiindex(index, "sample"))
    dictionary().encode(rows).to_zarr(tmp_path / "codes.zarr")
    opened = open_codes(tmp_path / "codes.zarr")
    np.testing.assert_array_equal(opened.coords["document"], np.repeat(range(5), 4))
    np.testing.assert_array_equal(opened.coords["position"], np.tile(range(4), 5))


def test_damaged_codes_are_named_when_they_are_read(tmp_path):
    lazy_codes().to_zarr(tmp_path / "codes.zarr")
    chunk = tmp_path / "codes.zarr" / "values" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:8])
    with pytest.raises(ValueError, match=r"codes.zarr \('values'\): rows 0 to .* cannot be read"):
        open_codes(tmp_path / "codes.zarr").to_csr()
