"""open_embeddings: the same rows from every source, lazily, and errors that name what to do."""

import io
import json
import os
import pickle
import re
import struct
import tempfile
import warnings
import zipfile
from pathlib import Path

import cloudpickle
import dask
import dask.array as da
import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from dbksvd_dask.embeddings import chunking, open_embeddings

SHAPE = (50, 6)
FLOATS = ["float16", "float32", "float64"]


def example(dtype="float32"):
    return np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)


# --- the sources -----------------------------------------------------------------------------------------------------


def rows_of(array):
    """Rows per chunk of what is chunked already: three chunks, the last one smaller."""
    return max(2, len(array) * 2 // 5)


def as_npy(folder, array):
    np.save(folder / "rows.npy", array)
    return folder / "rows.npy"


def as_fortran_npy(folder, array):
    return as_npy(folder, np.asfortranarray(array))


def as_big_endian_npy(folder, array):
    return as_npy(folder, array.astype(array.dtype.newbyteorder(">")))


def as_npz(folder, array):
    np.savez(folder / "rows.npz", tokens=np.arange(3), rows=array)
    return folder / "rows.npz"


def as_safetensors(folder, array, tag=None, name="rows"):
    tag = tag or {"f2": "F16", "f4": "F32", "f8": "F64"}[array.dtype.str[1:]]
    return write_safetensors(folder / "rows.safetensors", {name: (tag, array.shape)}, array.tobytes())


def write_safetensors(path, tensors, data):
    """The format by hand: its own NumPy writer knows neither every dtype nor how to write a broken file."""
    header = {"__metadata__": {"format": "pt"}}
    for name, (tag, shape) in tensors.items():
        header[name] = {"dtype": tag, "shape": shape, "data_offsets": [0, len(data)]}
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def as_data_array(folder, array):
    document = ("sample", np.arange(len(array)) // 10)
    return xr.DataArray(array, dims=("sample", "feature"), coords={"document": document}, attrs={"model": "MiniLM"})


def as_dask_data_array(folder, array):
    return as_data_array(folder, array).chunk(sample=rows_of(array))


def as_dataset(folder, array):
    return xr.Dataset({"rows": as_data_array(folder, array), "tokens": ("position", np.arange(3))})


def write_zarr(dataset, path, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")
        dataset.to_zarr(path, mode="w", **options)
    return path


def as_zarr(folder, array):
    return write_zarr(as_dataset(folder, array).chunk(sample=rows_of(array)), folder / "rows.zarr")


def as_zarr_2(folder, array):
    return write_zarr(as_dataset(folder, array).chunk(sample=rows_of(array)), folder / "rows.zarr", zarr_format=2)


def as_unconsolidated_zarr(folder, array):
    return write_zarr(as_dataset(folder, array).chunk(sample=rows_of(array)), folder / "rows.zarr", consolidated=False)


def as_sharded_zarr(folder, array):
    encoding = {"chunks": (rows_of(array) // 2, array.shape[1]), "shards": (rows_of(array), array.shape[1])}
    return write_zarr(as_dataset(folder, array), folder / "rows.zarr", encoding={"rows": encoding})


def as_bare_zarr(folder, array):
    zarr.create_array(folder / "rows.zarr", data=array, chunks=(rows_of(array), array.shape[1]), overwrite=True)
    return folder / "rows.zarr"


def as_array_of_a_zarr_group(folder, array):
    return as_zarr(folder, array) / "rows"


def as_lazy_data_array(folder, array):
    return xr.open_zarr(as_zarr(folder, array), chunks=None)["rows"]


def as_dask(folder, array):
    return da.from_array(array, chunks=(20, -1))


def as_numpy(folder, array):
    return array


def as_memmap(folder, array):
    return np.load(as_npy(folder, array), mmap_mode="r")


FILES = [
    as_npy,
    as_fortran_npy,
    as_big_endian_npy,
    as_npz,
    as_safetensors,
]
STORES = [
    as_zarr,
    as_zarr_2,
    as_unconsolidated_zarr,
    as_sharded_zarr,
    as_bare_zarr,
    as_array_of_a_zarr_group,
]
OBJECTS = [
    as_data_array,
    as_dask_data_array,
    as_lazy_data_array,
    as_dataset,
    as_dask,
    as_numpy,
    as_memmap,
]
SOURCES = FILES + STORES + OBJECTS


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("something was computed")


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 20 rows of the example in float32."""
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 20 * SHAPE[1] * 4)


# --- the same rows, lazily -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_rows_lazily(source, dtype, tmp_path):
    expected = example(dtype)
    opened = source(tmp_path, expected)
    with dask.config.set(scheduler=refuse_to_compute):
        Y = open_embeddings(opened)

    assert Y.dims == ("sample", "feature")
    assert isinstance(Y.data, da.Array)
    assert Y.chunks[1] == (6,)
    assert Y.dtype == expected.dtype  # in native byte order
    computed = Y.values
    assert computed.dtype == expected.dtype
    np.testing.assert_array_equal(computed, expected)


@pytest.mark.parametrize("source", FILES + STORES)
def test_files_are_read_when_computed(source, tmp_path):
    Y = open_embeddings(source(tmp_path, example()))
    source(tmp_path, -example())
    np.testing.assert_array_equal(Y.values, -example())


@pytest.mark.parametrize("source", FILES + STORES)
def test_paths_may_be_strings_and_relative(source, tmp_path, monkeypatch):
    path = source(tmp_path, example())
    monkeypatch.chdir(tmp_path)
    Y = open_embeddings(str(path.relative_to(tmp_path)))
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(Y.values, example())


@pytest.mark.parametrize("source", FILES + STORES)
def test_the_graph_of_a_file_holds_no_data(source, tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 2**16)
    array = np.random.default_rng(0).standard_normal((5000, 64)).astype("float32")
    Y = open_embeddings(source(tmp_path, array))
    assert Y.data.npartitions > 1
    assert len(cloudpickle.dumps(Y.data.dask)) < 10_000 < array.nbytes
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(Y)).values, array)


@pytest.mark.parametrize("source", FILES)
def test_a_file_keeps_its_name_in_the_graph_until_it_changes(source, tmp_path):
    path = source(tmp_path, example())
    first, second = open_embeddings(path), open_embeddings(path)
    assert first.data.name == second.data.name
    changed = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(changed, changed))
    assert open_embeddings(path).data.name != first.data.name


def test_a_file_larger_than_memory_opens_and_reads_by_rows(tmp_path):
    shape = (100_000_000, 256)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    path = tmp_path / "huge.npy"
    with path.open("wb") as stream:
        stream.write(header.getvalue())
        stream.truncate(len(header.getvalue()) + 4 * shape[0] * shape[1])  # 102 GB of a hole: takes no room on disk

    Y = open_embeddings(path)
    assert Y.shape == shape
    assert Y[-3:].values.tolist() == np.zeros((3, 256)).tolist()


def test_numpy_arrays_are_wrapped_not_copied():
    array = example()
    chunks = open_embeddings(array).data
    shared = chunks.map_blocks(lambda chunk: np.array([[np.shares_memory(chunk, array)]]), meta=np.empty((0, 0), bool))
    assert shared.compute(scheduler="synchronous").all()


def test_chunks_of_files_and_numpy_arrays_have_8_mib_or_the_next_smaller_power_of_two_of_rows(tmp_path):
    array = np.zeros((20_000, 384), "float16")
    rows = 2**13
    assert rows * 384 * 2 <= 8 * 2**20 < 2 * rows * 384 * 2
    for source in (as_npy, as_npz, as_safetensors, as_numpy):
        assert open_embeddings(source(tmp_path, array)).chunks[0] == (rows, rows, 20_000 - 2 * rows)


def test_a_chunk_has_at_least_one_row(monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 1)
    assert open_embeddings(example()).chunks[0] == (1,) * 50


@pytest.mark.parametrize("source", [as_dask, as_dask_data_array, as_zarr, as_bare_zarr])
def test_dask_arrays_and_stores_keep_their_chunks_of_rows(source, tmp_path):
    assert open_embeddings(source(tmp_path, example())).chunks[0] == (20, 20, 10)


def test_a_dask_array_in_whole_rows_passes_through():
    array = da.from_array(example(), chunks=(20, -1))
    assert open_embeddings(array).data is array


def test_empty_chunks_of_rows_are_dropped():
    array = da.from_array(example(), chunks=(20, -1))
    selected = array[da.from_array(np.arange(50) // 20 != 1, chunks=20)].compute_chunk_sizes()
    assert selected.chunks[0] == (20, 0, 10)
    Y = open_embeddings(selected)
    assert Y.chunks[0] == (20, 10)
    np.testing.assert_array_equal(Y.values, np.delete(example(), np.s_[20:40], axis=0))


@pytest.mark.parametrize("wrap", [as_numpy, as_dask, as_safetensors])
def test_bfloat16_becomes_float32_exactly(wrap, tmp_path):
    array = example(ml_dtypes.bfloat16)
    Y = open_embeddings(
        as_safetensors(tmp_path, array, tag="BF16") if wrap is as_safetensors else wrap(tmp_path, array)
    )
    assert Y.dtype == Y.values.dtype == np.float32
    np.testing.assert_array_equal(Y.values, array.astype("float32"))


# --- chunked features ------------------------------------------------------------------------------------------------


def chunked_zarr(folder, array):
    zarr.create_array(folder / "rows.zarr", data=array, chunks=(20, 4))
    return folder / "rows.zarr"


def chunked_dask(folder, array):
    return da.from_array(array, chunks=(20, 4))


@pytest.mark.parametrize("source", [chunked_zarr, chunked_dask])
def test_split_features_are_put_together_with_a_warning(source, tmp_path):
    opened = source(tmp_path, example())
    with pytest.warns(
        UserWarning, match=r"features .* split over 2 chunks; each sample is needed whole.*rechunk"
    ) as seen:
        Y = open_embeddings(opened)
    assert seen[0].filename == __file__
    assert Y.chunks == ((20, 20, 10), (6,))
    np.testing.assert_array_equal(Y.values, example())


# --- coordinates and dimensions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", [as_data_array, as_dask_data_array, as_lazy_data_array, as_dataset, as_zarr, as_zarr_2]
)
def test_coordinates_and_attributes_are_kept(source, tmp_path):
    opened = source(tmp_path, example())
    with dask.config.set(scheduler=refuse_to_compute):
        Y = open_embeddings(opened)
    assert Y.attrs == {"model": "MiniLM"}
    assert set(Y.coords) == {"document"}
    assert Y.document.dims == ("sample",)
    np.testing.assert_array_equal(Y.document, np.arange(50) // 10)


@pytest.mark.parametrize(
    ("dims", "transposed"),
    [
        (("sample", "feature"), False),
        (("token", "hidden"), False),
        (("sample", "hidden"), False),
        (("token", "feature"), False),
        (("feature", "sample"), True),
        (("feature", "token"), True),
        (("hidden", "sample"), True),
    ],
)
def test_the_first_dimension_is_the_samples_unless_named_otherwise(dims, transposed):
    array = xr.DataArray(example(), dims=dims)
    Y = open_embeddings(array)
    assert Y.dims == ("sample", "feature")
    np.testing.assert_array_equal(Y.values, example().T if transposed else example())


def test_coordinates_keep_their_names_when_dimensions_do_not():
    array = xr.DataArray(
        example(), dims=("token", "hidden"), coords={"token": np.arange(50), "sample": ("token", np.arange(50) + 7)}
    )
    Y = open_embeddings(array)
    np.testing.assert_array_equal(Y.token, np.arange(50))
    np.testing.assert_array_equal(Y.sel(sample=[7]).values, example()[:1])


def test_an_array_without_a_name_is_called_embeddings(tmp_path):
    assert open_embeddings(as_npy(tmp_path, example())).name == "embeddings"
    assert open_embeddings(as_bare_zarr(tmp_path, example())).name == "embeddings"
    assert open_embeddings(as_dask(tmp_path, example())).name == "embeddings"
    assert open_embeddings(as_npz(tmp_path, example())).name == "rows"


# --- which array of a container --------------------------------------------------------------------------------------


def npz_of(folder, **arrays):
    np.savez(folder / "several.npz", **arrays)
    return folder / "several.npz"


def zarr_of(folder, **arrays):
    return write_zarr(dataset_of(folder, **arrays), folder / "several.zarr")


def dataset_of(folder, **arrays):
    return xr.Dataset({name: ((f"{name}_row", f"{name}_column")[: a.ndim], a) for name, a in arrays.items()})


def safetensors_of(folder, **arrays):
    from safetensors.numpy import save_file

    save_file(arrays, folder / "several.safetensors")
    return folder / "several.safetensors"


@pytest.mark.parametrize("container", [npz_of, zarr_of, dataset_of, safetensors_of])
class TestContainers:
    def test_takes_the_only_floating_matrix(self, container, tmp_path):
        source = container(tmp_path, mean=np.ones(6), tokens=np.ones((50, 6), int), layer=example())
        np.testing.assert_array_equal(open_embeddings(source).values, example())

    def test_takes_the_one_called_embeddings(self, container, tmp_path):
        source = container(tmp_path, before=-example(), embeddings=example())
        np.testing.assert_array_equal(open_embeddings(source).values, example())

    def test_takes_the_one_named(self, container, tmp_path):
        source = container(tmp_path, before=-example(), embeddings=example())
        np.testing.assert_array_equal(open_embeddings(source, name="before").values, -example())

    def test_several(self, container, tmp_path):
        source = container(tmp_path, first=example(), second=example())
        with pytest.raises(ValueError, match=r"several .* choose one with name='first', name='second'"):
            open_embeddings(source)

    def test_none(self, container, tmp_path):
        source = container(tmp_path, mean=np.ones(6), tokens=np.ones((50, 6), int))
        with pytest.raises(ValueError, match=r"no two-dimensional floating array; it holds .*'mean' \(1-D float64\)"):
            open_embeddings(source)

    def test_unknown_name(self, container, tmp_path):
        source = container(tmp_path, first=example(), tokens=np.ones((50, 6), int))
        with pytest.raises(ValueError, match="no array 'second'; it holds ") as error:
            open_embeddings(source, name="second")
        assert "'first' (2-D float32)" in str(error.value)
        assert re.search(r"'tokens' \(2-D (int|I)64\)", str(error.value))

    def test_named_but_unfit(self, container, tmp_path):
        source = container(tmp_path, mean=np.ones(6), tokens=np.ones((50, 6), int))
        with pytest.raises(ValueError, match=r"several\..*\('mean'\)|Dataset \('mean'\)") as error:
            open_embeddings(source, name="mean")
        assert "has shape (6,): embeddings are two-dimensional" in str(error.value)
        with pytest.raises(TypeError, match=r"\('tokens'\) has dtype (int64|I64): .*astype"):
            open_embeddings(source, name="tokens")


@pytest.mark.parametrize("source", [as_npy, as_bare_zarr, as_data_array, as_dask, as_numpy])
def test_a_single_array_takes_no_name(source, tmp_path):
    with pytest.raises(ValueError, match=r"name='rows' was given, but .* is a single array"):
        open_embeddings(source(tmp_path, example()), name="rows")


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", [as_npy, as_npz, as_bare_zarr, as_zarr, as_numpy, as_dask, as_data_array, as_dataset]
)
@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.ones((4, 3), int), TypeError, "dtype int64: .*astype"),
        (np.ones((4, 3), bool), TypeError, "dtype bool: .*astype"),
        (np.ones((4, 3), complex), TypeError, "dtype complex128: .*astype"),
        (np.ones((0, 3)), ValueError, r"is empty: shape \(0, 3\)"),
        (np.ones((4, 0)), ValueError, r"is empty: shape \(4, 0\)"),
    ],
)
def test_unfit_arrays_are_refused(source, array, error, message, tmp_path):
    if array.size == 0 and source is as_bare_zarr:
        opened = tmp_path / "empty.zarr"
        zarr.create_array(opened, shape=array.shape, chunks=(1, 1), dtype=array.dtype)
    elif source in (as_dask, as_zarr):
        opened = source(tmp_path, array) if array.size else da.from_array(array)
    else:
        opened = source(tmp_path, array)
    named = {"name": "rows"} if source in (as_npz, as_dataset) or (source is as_zarr and array.size) else {}
    with pytest.raises(error, match=message):
        open_embeddings(opened, **named)


@pytest.mark.parametrize("shape", [(), (5,), (5, 4, 3)])
@pytest.mark.parametrize("make", [as_npy, lambda folder, array: array, lambda folder, array: da.from_array(array)])
def test_embeddings_are_two_dimensional(make, shape, tmp_path):
    with pytest.raises(ValueError, match="embeddings are two-dimensional"):
        open_embeddings(make(tmp_path, np.ones(shape)))


def test_object_arrays_are_refused_without_unpickling(tmp_path):
    np.save(tmp_path / "rows.npy", np.array([[1, 2]], dtype=object), allow_pickle=True)
    for source in (tmp_path / "rows.npy", np.array([[1, 2]], dtype=object)):
        with pytest.raises(TypeError, match="dtype object"):
            open_embeddings(source)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
    return path


def overwrite(path, content):
    path.write_bytes(content)
    return path


def compressed_npz(folder):
    np.savez_compressed(folder / "rows.npz", rows=example())
    return folder / "rows.npz"


def encrypted_npz(folder):
    path = as_npz(folder, example())
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    content[directory + 8] |= 1
    return overwrite(path, content)


def zarr_without_metadata(folder):
    path = as_zarr(folder, example())
    (path / "zarr.json").unlink()
    return path


def zarr_with_half_its_metadata(folder):
    path = as_zarr(folder, example())
    cut(path / "zarr.json", 100)
    return path


def zarr_without_dimension_names(folder):
    zarr.open_group(folder / "rows.zarr", mode="w").create_array("rows", data=example())
    return folder / "rows.zarr"


def bare_zarr_with_a_missing_chunk(folder):
    path = as_bare_zarr(folder, example())
    (path / "c" / "1" / "0").unlink()
    return path


def zarr_with_a_missing_chunk(folder):
    path = as_zarr(folder, example())
    (path / "rows" / "c" / "2" / "0").unlink()
    return path


def sharded_zarr_with_a_missing_shard(folder):
    path = as_sharded_zarr(folder, example())
    (path / "rows" / "c" / "2" / "0").unlink()
    return path


def unknown_chunks(folder):
    array = da.from_array(example(), chunks=(20, -1))
    return array[array[:, 0] > 0]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (lambda f: f / "no.npy", FileNotFoundError, "nothing at .*no.npy"),
        (lambda f: f / "no.zarr", FileNotFoundError, "nothing at .*no.zarr"),
        (lambda f: "nowhere://bucket/rows.zarr", ValueError, "nowhere://bucket/rows.zarr cannot be opened"),
        (lambda f: "memory://no/rows.zarr", FileNotFoundError, "nothing at memory://no/rows.zarr"),
        (lambda f: "memory://no/rows.npy", ValueError, "remote .npy file, .* write it as a zarr store"),
        (lambda f: overwrite(f / "rows.csv", b""), ValueError, "unknown suffix '.csv': .*numpy.save"),
        (lambda f: overwrite(f / "rows", b""), ValueError, "unknown suffix ''"),
        (lambda f: f, ValueError, "not a readable zarr store .*half written"),
        (lambda f: overwrite(f / "rows.zarr", b"PK"), ValueError, "rows.zarr is a file, but a zarr store is a folder"),
        (lambda f: cut(as_npy(f, example()), 1000), ValueError, "cut off: .* has 1328 bytes, but there are 1000"),
        (lambda f: cut(as_npy(f, example()), 50), ValueError, "not a readable .npy file"),
        (lambda f: overwrite(f / "rows.npy", b""), ValueError, "not a readable .npy file"),
        (lambda f: overwrite(f / "rows.npy", b"\x93NUMPY\x03\x00"), ValueError, "not a readable .npy file: .* 3.0"),
        (lambda f: overwrite(f / "rows.npy", b"something else"), ValueError, "not a readable .npy file"),
        (lambda f: cut(as_npz(f, example()), 1000), ValueError, "not a readable .npz file"),
        (encrypted_npz, ValueError, "not a readable .npz file"),
        (compressed_npz, ValueError, "'rows' compressed, .*numpy.save"),
        (lambda f: cut(as_safetensors(f, example()), 1000), ValueError, "not a readable .safetensors file"),
        (lambda f: cut(as_safetensors(f, example()), 20), ValueError, "not a readable .safetensors file"),
        (lambda f: cut(as_safetensors(f, example()), 4), ValueError, "not a readable .safetensors file"),
        (lambda f: overwrite(f / "rows.safetensors", b""), ValueError, "not a readable .safetensors file"),
        (zarr_without_metadata, ValueError, "metadata .* is missing or broken; was it only half written"),
        (zarr_with_half_its_metadata, ValueError, "metadata .* is missing or broken; was it only half written"),
        (zarr_without_dimension_names, ValueError, "open one of them by its own path: .*rows.zarr/rows"),
        (bare_zarr_with_a_missing_chunk, ValueError, "no data in 1 of its 3 chunks: was its writing interrupted"),
        (zarr_with_a_missing_chunk, ValueError, "no data in 1 of its 3 chunks: was its writing interrupted"),
        (sharded_zarr_with_a_missing_shard, ValueError, "no data in 1 of its 3 chunks: was its writing interrupted"),
        (unknown_chunks, ValueError, r"unknown size.*compute_chunk_sizes\(\)"),
        (lambda f: example().tolist(), TypeError, r"from a builtins.list: pass a path, a NumPy, CuPy or dask array"),
        (lambda f: np.ma.masked_less(example(), 0), TypeError, "from a numpy.ma.*MaskedArray"),
        (lambda f: None, TypeError, "from a builtins.NoneType"),
    ],
)
def test_mistakes_are_named(source, error, message, tmp_path):
    made = source(tmp_path)
    with pytest.raises(error, match=f"(?s){message}"):
        open_embeddings(made)


@pytest.mark.parametrize(
    ("source", "chunk"), [(as_zarr, "rows/c/1/0"), (as_bare_zarr, "c/1/0"), (as_zarr_2, "rows/1.0")]
)
def test_a_damaged_chunk_is_named_when_it_is_read(source, chunk, tmp_path):
    path = source(tmp_path, example())
    cut(path / chunk, 10)
    embeddings = open_embeddings(path)
    second = slice(embeddings.chunks[0][0], sum(embeddings.chunks[0][:2]))
    np.testing.assert_array_equal(embeddings[: second.start], example()[: second.start])
    with pytest.raises(
        ValueError, match=rf"rows.zarr.*: rows {second.start} to {second.stop - 1} cannot be read .*damaged"
    ):
        embeddings.compute()


def test_a_damaged_coordinate_is_named_when_it_is_read(tmp_path):
    document = ("sample", np.arange(100) + 1)
    dataset = xr.Dataset({"rows": (("sample", "feature"), np.ones((100, 3)))}, {"document": document})
    path = write_zarr(dataset.chunk(sample=50), tmp_path / "rows.zarr")
    cut(path / "document" / "c" / "1", 10)
    embeddings = open_embeddings(path)
    np.testing.assert_array_equal(embeddings.document[:50], np.arange(50) + 1)
    with pytest.raises(ValueError, match=r"rows.zarr \('document'\): rows 50 to 99 cannot be read"):
        embeddings.document.compute()


def test_tasks_do_not_carry_the_index_of_all_samples(tmp_path):
    dataset = xr.Dataset({"rows": (("sample", "feature"), np.ones((50_000, 2)))}, {"sample": np.arange(50_000)})
    embeddings = open_embeddings(write_zarr(dataset.chunk(sample=5000), tmp_path / "rows.zarr"))
    assert embeddings.indexes["sample"].size == 50_000
    assert len(cloudpickle.dumps(dict(embeddings.data.dask))) < 50_000


def test_array_metadata_that_is_broken_is_named(tmp_path):
    path = as_unconsolidated_zarr(tmp_path, example())
    cut(path / "rows" / "zarr.json", 10)
    with pytest.raises(ValueError, match=r"rows.zarr is not a readable zarr store .*half written"):
        open_embeddings(path)


@pytest.mark.parametrize("tag", ["I64", "F8_E4M3", "BOOL"])
def test_tensors_that_are_not_floating_are_refused(tag, tmp_path):
    size = {"I64": 8}.get(tag, 1)
    path = write_safetensors(tmp_path / "rows.safetensors", {"rows": (tag, (4, 3))}, bytes(12 * size))
    with pytest.raises(ValueError, match=rf"no two-dimensional floating array; it holds 'rows' \(2-D {tag}\)"):
        open_embeddings(path)
    with pytest.raises(TypeError, match=rf"\('rows'\) has dtype {tag}: .*astype"):
        open_embeddings(path, name="rows")


# --- any shape, chunking and dtype -----------------------------------------------------------------------------------


@st.composite
def arrays(draw):
    dtype = draw(st.sampled_from(["float16", "float32", "float64", ">f2", ">f4", ">f8"]))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
    # Not zero, which zarr need not store.
    array = draw(hnp.arrays(dtype, shape, elements=st.floats(1, 100, width=16)))
    return np.asfortranarray(array) if draw(st.booleans()) else array


@st.composite
def chunkings(draw, size):
    """Positive chunk sizes that add up to ``size``."""
    cuts = sorted(draw(st.sets(st.integers(1, size - 1)))) if size > 1 else []
    return tuple(np.diff([0, *cuts, size]).tolist())


@settings(deadline=None)
@given(st.data(), arrays())
def test_any_dask_array(data, array):
    chunks = (data.draw(chunkings(array.shape[0])), data.draw(chunkings(array.shape[1])))
    source = da.from_array(array, chunks=chunks)
    with warnings.catch_warnings():
        if len(chunks[1]) > 1:
            warnings.simplefilter("ignore", UserWarning)
        Y = open_embeddings(source)
    assert Y.chunks == (chunks[0], (array.shape[1],))
    assert Y.values.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(Y.values, array)


@settings(deadline=None, max_examples=30)
@given(arrays(), st.integers(1, 200), st.sampled_from([as_npy, as_npz, as_bare_zarr, as_numpy]))
def test_any_array_in_any_file(array, chunk_bytes, source):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "CHUNK_BYTES", chunk_bytes)
        Y = open_embeddings(source(Path(folder), array))
        values = Y.values
    assert values.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(values, array)
    rows_fit = max(1, chunk_bytes // (array.itemsize * array.shape[1]))
    if source is not as_bare_zarr:
        most = max(Y.chunks[0])
        assert most == len(array) or (most & (most - 1) == 0 and rows_fit / 2 < most <= rows_fit)
