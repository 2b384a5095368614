"""Embeddings on a GPU: the same rows from every source, moved chunk by chunk when they are read, and never unasked."""

import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import dask
import dask.array as da
import ml_dtypes
import numpy as np
import pytest
import xarray as xr

from dbksvd_dask import open_embeddings
from dbksvd_dask.batches import read_in_order
from dbksvd_dask.embeddings import chunking
from dbksvd_dask.fingerprint import fingerprint
from dbksvd_dask.graph import delayed_of, task
from dbksvd_dask.kernels.backend import on_device

SHAPE = (50, 6)


def example(dtype="float32", shape=SHAPE):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def in_chunks(array):
    return da.from_array(array, chunks=(20, -1))


def as_npy(folder, array):
    np.save(folder / "rows.npy", array)
    return folder / "rows.npy"


def as_big_endian_npy(folder, array):
    return as_npy(folder, array.astype(array.dtype.newbyteorder(">")))


def as_fortran_npy(folder, array):
    return as_npy(folder, np.asfortranarray(array))


def as_files(folder, array):
    for i in range(2):
        np.save(folder / f"rows_{i}.npy", array[25 * i : 25 * (i + 1)])
    return str(folder / "rows_*.npy")


def as_zarr(folder, array):
    coords = {"document": ("sample", np.arange(len(array)) // 10)}
    embeddings = xr.DataArray(array, coords, ("sample", "feature"), name="embeddings").chunk(sample=20)
    embeddings.to_dataset().to_zarr(folder / "rows.zarr", consolidated=False)
    return folder / "rows.zarr"


def as_numpy(folder, array):
    return array


def as_dask(folder, array):
    return in_chunks(array)


def as_xarray(folder, array):
    return xr.DataArray(array, dims=("sample", "feature"), attrs={"layer": 3})


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 16 * 6 * 4)


@pytest.fixture
def nothing_computes():
    def refuse(*_, **__):
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        yield


def rows_of(embeddings):
    """All rows, which have to be on the device, on the host."""
    chunks = dask.compute(*embeddings.data.to_delayed().ravel())
    assert all(map(on_device, chunks))
    return np.concatenate([chunk.get() for chunk in chunks])


# --- moved -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", [as_npy, as_big_endian_npy, as_fortran_npy, as_files, as_zarr, as_numpy, as_dask, as_xarray]
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_of_every_source_are_moved(cupy, small_chunks, tmp_path, source, dtype):
    array = example(dtype)
    embeddings = open_embeddings(source(tmp_path, array), device="cuda")
    assert isinstance(embeddings.data._meta, cupy.ndarray)
    assert embeddings.data._meta.dtype == dtype
    assert embeddings.dims == ("sample", "feature")
    assert len(embeddings.data.chunks[0]) > 1
    np.testing.assert_array_equal(rows_of(embeddings), array, strict=True)


def test_all_else_is_as_on_the_host(cupy, tmp_path):
    place = as_zarr(tmp_path, example())
    host, device = open_embeddings(place), open_embeddings(place, device="cuda")
    assert device.chunks == host.chunks
    assert device.name == host.name
    assert device.attrs == host.attrs
    assert device.encoding["source"] == host.encoding["source"]
    np.testing.assert_array_equal(device.document.values, np.arange(50) // 10)


def test_bfloat16_is_moved_as_float32(cupy):
    array = example().astype(ml_dtypes.bfloat16)
    embeddings = open_embeddings(in_chunks(array), device="cuda")
    np.testing.assert_array_equal(rows_of(embeddings), array.astype("float32"), strict=True)


def test_rows_that_are_features_are_turned_first(cupy):
    embeddings = open_embeddings(example().T, orientation="features", device="cuda")
    np.testing.assert_array_equal(rows_of(embeddings), example())


@pytest.mark.usefixtures("nothing_computes")
@pytest.mark.parametrize("source", [as_npy, as_zarr, as_dask])
def test_nothing_is_read_or_moved_before_it_is_asked_for(cupy, monkeypatch, tmp_path, source):
    with dask.config.set(scheduler="sync"):  # to write it
        place = source(tmp_path, example())
    monkeypatch.setattr(cupy.cuda, "alloc_pinned_memory", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embeddings = open_embeddings(place, device="cuda")
        repr(embeddings), embeddings._repr_html_()


def test_chunks_are_moved_by_the_task_that_takes_them(cupy, small_chunks, tmp_path):
    embeddings = open_embeddings(as_npy(tmp_path, example()), device="cuda")
    (rows,) = (call for _, call in read_in_order(embeddings.data))
    (asked,) = delayed_of(task(lambda pieces: [piece.get() for piece in pieces], rows))
    assert len(asked.dask) == 1


def test_a_fingerprint_does_not_tell_where_the_rows_are(cupy, small_chunks):
    embeddings = open_embeddings(example())
    assert fingerprint(open_embeddings(embeddings, device="cuda")) == fingerprint(embeddings)


@pytest.mark.parametrize("device", ["gpu", "cuda:1", "cpu", 0, True, ["cuda"], np.array(["cuda", "cuda"])], ids=str)
def test_there_is_no_other_device(device):
    said = re.escape(f"device={device!r} is neither 'cuda' nor None")
    with pytest.raises(ValueError, match=f"{said}.*device='cuda'.*CUDA_VISIBLE_DEVICES"):
        open_embeddings(example(), device=device)


# --- there already ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [None, "cuda"])
@pytest.mark.parametrize("wrap", [lambda array: array, lambda array: xr.DataArray(array, dims=("sample", "feature"))])
def test_a_cupy_array_is_chunked_by_views(cupy, small_chunks, wrap, device):
    array = cupy.asarray(example())
    embeddings = open_embeddings(wrap(array), device=device)
    assert embeddings.chunks == ((16, 16, 16, 2), (6,))
    chunks = dask.compute(*embeddings.data.to_delayed().ravel())
    assert [chunk.data.ptr for chunk in chunks] == [array.data.ptr + 16 * i * 6 * 4 for i in range(4)]
    np.testing.assert_array_equal(rows_of(embeddings), example())


@pytest.mark.parametrize("device", [None, "cuda"])
def test_cupy_chunks_stay_as_they_are(cupy, device):
    data = in_chunks(example()).map_blocks(cupy.asarray, meta=cupy.empty((0, 0), "f4"))
    assert open_embeddings(data, device=device).data is data
    dataset = xr.Dataset({"embeddings": (("sample", "feature"), data)})
    assert open_embeddings(dataset, device=device).data is data


def test_cupy_chunks_of_features_are_put_together_there(cupy):
    data = da.from_array(cupy.asarray(example()), chunks=(20, 4))
    with pytest.warns(UserWarning, match="split over 2 chunks"):
        embeddings = open_embeddings(data)
    assert on_device(embeddings.data)
    np.testing.assert_array_equal(rows_of(embeddings), example())


def test_a_cupy_array_has_to_be_embeddings_too(cupy):
    with pytest.raises(TypeError, match="the cupy ndarray has dtype int64: embeddings are"):
        open_embeddings(cupy.asarray(np.ones((3, 2), "i8")))


# --- the transfer ----------------------------------------------------------------------------------------------------

LAYOUTS = {
    "one piece": example(),
    "of Fortran": np.asfortranarray(example(shape=(500, 6))),
    "every third": example(shape=(1500, 12))[::3, ::2],
    "backwards": example(shape=(500, 6))[::-1],
    "the other byte order": example(">f8", shape=(500, 6)),
    "float16": example("f2", shape=(501, 7)),
    "rows larger than a piece": example(shape=(5, 1000)),
    "no rows": example(shape=(0, 6)),
    "one dimension": example(shape=(5000,)),
    "read-only": np.broadcast_to(example(shape=(1, 6)), (500, 6)),
}


@pytest.fixture
def upload(cupy, monkeypatch):
    """The transfer, in pieces of so few rows that buffers are used again and again."""
    from dbksvd_dask.kernels.cuda import transfers

    monkeypatch.setattr(transfers, "PIECE_BYTES", 1024)
    return transfers.upload


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_arrives_is_what_was_sent(cupy, upload, layout):
    array = LAYOUTS[layout]
    moved = upload(array)
    assert isinstance(moved, cupy.ndarray)
    assert moved.flags.c_contiguous
    assert moved.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(moved.get(), array)


def test_threads_do_not_mix_up_their_rows(upload):
    arrays = [np.full((300, 6), float(i)) for i in range(32)]
    with ThreadPoolExecutor(8) as pool:
        moved = list(pool.map(upload, arrays))
    for rows, array in zip(moved, arrays, strict=True):
        np.testing.assert_array_equal(rows.get(), array)


def test_memory_is_not_used_again_while_something_in_the_queue_may_read_it(cupy, upload, monkeypatch):
    answers = [False, False, True]

    class Event:
        @property
        def done(self):
            return answers.pop(0)

    rows = upload(example())
    busy = SimpleNamespace(done=False, record=Event)
    with monkeypatch.context() as patch:
        patch.setattr(cupy.cuda, "get_current_stream", lambda: busy)
        del rows
    for left in ([False, True], [True], [], []):  # given back after the third time: it is not asked for any more
        upload(example())
        assert answers == left


def test_threads_that_come_later_use_the_stream_of_those_before(cupy, upload, monkeypatch):
    made, stream = [], cupy.cuda.Stream
    monkeypatch.setattr(cupy.cuda, "Stream", lambda **options: made.append(options) or stream(**options))
    for _ in range(5):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(upload, example()).result()
    assert len(made) <= 1
