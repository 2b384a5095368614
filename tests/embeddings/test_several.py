"""open_embeddings of several files as one, of any format, on a cluster, read by rows; and which way round they are."""

import pickle
import sys
import warnings
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from distributed import Client, LocalCluster

from dbksvd_dask import DBKSVD, open_embeddings
from dbksvd_dask.contexts import open_contexts
from dbksvd_dask.embeddings import chunking
from dbksvd_dask.inputs import open_rows

pa = pytest.importorskip("pyarrow", reason="needs dbksvd-dask[formats]")
parquet = pytest.importorskip("pyarrow.parquet")
h5py = pytest.importorskip("h5py", reason="needs dbksvd-dask[formats]")
torch = pytest.importorskip("torch", reason="needs dbksvd-dask[harvest]")

N_FEATURES = 64


def example(n=50, seed=0):
    return np.random.default_rng(seed).standard_normal((n, N_FEATURES), "float32")


def as_table(array):
    return pa.table({"rows": pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])})


def as_npy(path, array):
    np.save(path, array)


def as_zarr(path, array):
    dataset = xr.Dataset({"rows": (("sample", "feature"), array)}, {"sample": np.arange(len(array))})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")
        dataset.chunk(sample=2048).to_zarr(path)


def as_hdf5(path, array):
    with h5py.File(path, "w") as file:
        file["layer_activations"] = array


def as_chunked_hdf5(path, array):
    with h5py.File(path, "w") as file:
        file.create_dataset("rows", data=array, chunks=(min(512, len(array)), 16), compression="lzf")


def as_torch(path, array):
    torch.save({"activations": torch.from_numpy(array)}, path)


def as_arrow(path, array):
    with pa.ipc.new_stream(path, as_table(array).schema) as writer:
        writer.write_table(as_table(array))  # one batch of all


def as_feather(path, array):
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(path, as_table(array).schema, options=options) as writer:
        writer.write_table(as_table(array), max_chunksize=1024)


def as_parquet(path, array):
    parquet.write_table(as_table(array), path, row_group_size=1024)


WRITERS = {
    ".npy": as_npy,
    ".zarr": as_zarr,
    ".h5": as_hdf5,
    ".hdf5": as_chunked_hdf5,
    ".pt": as_torch,
    ".arrow": as_arrow,
    ".feather": as_feather,
    ".parquet": as_parquet,
}


def written(folder, name, array):
    path = folder / name
    WRITERS[path.suffix](path, array)
    return path


# --- by rows, on any worker ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        yield client


@pytest.mark.parametrize("suffix", WRITERS)
def test_workers_read_their_rows_from_descriptions(suffix, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 2**17)
    array = example(20_000)
    Y = open_embeddings(written(tmp_path, f"rows{suffix}", array))
    assert Y.data.npartitions >= 10
    assert len(pickle.dumps(Y.data.dask)) < array.nbytes / 100
    np.testing.assert_array_equal(Y.compute(), array)


def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="counts by /proc")
@pytest.mark.parametrize("suffix", [suffix for suffix in WRITERS if suffix != ".zarr"])
def test_opening_reads_what_describes_and_tasks_their_rows(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 2**18)
    array = example(2**15)  # 8 MiB
    open_embeddings(written(tmp_path, f"small{suffix}", array[:10])).compute()  # imports what it needs
    path = written(tmp_path, f"rows{suffix}", array)
    before = bytes_read()
    Y = open_embeddings(path)
    opened = bytes_read()
    assert opened - before < 2**18
    np.testing.assert_array_equal(Y[5000:5010], array[5000:5010])
    assert bytes_read() - opened < 2**20
    assert str(path) not in Path("/proc/self/maps").read_text()


# --- several files ---------------------------------------------------------------------------------------------------


def test_files_of_any_format_are_one_array(tmp_path):
    arrays = [example(seed=seed) for seed in range(len(WRITERS))]
    paths = [written(tmp_path, f"rows{suffix}", array) for suffix, array in zip(WRITERS, arrays, strict=True)]
    Y = open_embeddings(paths)
    assert Y.dims == ("sample", "feature")
    np.testing.assert_array_equal(Y, np.concatenate(arrays))
    np.testing.assert_array_equal(Y.file, np.repeat(np.arange(len(WRITERS)), 50))
    assert Y.attrs["files"] == [str(path) for path in paths]
    assert "sample" not in Y.coords  # only one of them has it


def test_a_pattern_takes_numbers_in_order_and_keeps_coordinates(tmp_path):
    for i in range(1, 13):
        windows = torch.full((2, 3, 4), float(i))
        torch.save({"activations": windows, "tokens": torch.full((2, 3), i)}, tmp_path / f"activations_{i}_of_12.pt")
    Y = open_embeddings(f"{tmp_path}/activations_*_of_12.pt")
    assert Y.identical(open_embeddings(tmp_path / "activations_*_of_12.pt"))
    np.testing.assert_array_equal(Y[:, 0], np.repeat(np.arange(1, 13), 6))
    np.testing.assert_array_equal(Y.token_id, np.repeat(np.arange(1, 13), 6))
    np.testing.assert_array_equal(Y.file, np.repeat(np.arange(12), 6))
    np.testing.assert_array_equal(Y.context, np.tile(np.repeat([0, 1], 3), 12))


def test_a_fit_takes_several_files(tmp_path):
    paths = [str(written(tmp_path, "a.npy", example(seed=0))), written(tmp_path, "b.arrow", example(seed=1))]
    rows = open_rows(DBKSVD(8, 2), paths, reset=True)
    np.testing.assert_array_equal(rows, np.concatenate([example(seed=0), example(seed=1)]))


def test_widths_dtypes_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    as_npy("a.npy", example())
    as_npy("b.npy", example()[:, :5])
    as_npy("c.npy", example().astype("float64"))
    with pytest.raises(ValueError, match=r"b\.npy has 5 features, but .*a\.npy has 64"):
        open_embeddings(["a.npy", "b.npy"])
    assert open_embeddings(("a.npy", Path("c.npy"))).dtype == "float64"
    with pytest.raises(FileNotFoundError, match=r"nothing at .*d\.npy"):
        open_embeddings(["a.npy", "d.npy"])
    with pytest.raises(FileNotFoundError, match=r"nothing that matches .*\*\.parquet"):
        open_embeddings("*.parquet")
    with pytest.raises(ValueError, match="the list of files is empty"):
        open_embeddings([])
    with pytest.raises(TypeError, match=r"from a builtins\.list"):
        open_embeddings(["a.npy", example()])
    with pytest.raises(ValueError, match=r"is a folder of files, not a zarr store: open them .*\*\.npy'"):
        open_embeddings(tmp_path)


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path):
    as_npy(tmp_path / "rows[1].npy", example())
    assert "file" not in open_embeddings(f"{tmp_path}/rows[1].npy").coords


@pytest.mark.parametrize("suffix", [".h5", ".arrow", ".parquet", ".pt"])
def test_a_damaged_file_of_several_is_named(suffix, tmp_path):
    paths = [written(tmp_path, f"{name}{suffix}", example()) for name in "ab"]
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"b\{suffix} is (cut off|not a readable)"):
        open_embeddings(paths)


def test_embeddings_that_are_not_in_a_zarr_store_tell_no_contexts(tmp_path):
    Y = open_embeddings([written(tmp_path, "a.npy", example())])
    assert open_contexts(Y).tokens is None


# --- which way round -------------------------------------------------------------------------------------------------


def sources(folder, array):
    for suffix in (".npy", ".h5", ".hdf5", ".pt"):
        yield written(folder, f"rows{suffix}", array)
    zarr.create_array(folder / "rows.zarr", data=array, chunks=array.shape)
    yield folder / "rows.zarr"
    yield array
    yield da.from_array(array, chunks=-1)
    yield xr.DataArray(array)


def test_orientation_is_told(tmp_path):
    array = example()
    for source in sources(tmp_path, array):
        for orientation, expected in [("samples", array), ("features", array.T), (None, array)]:
            Y = open_embeddings(source, orientation=orientation)
            assert Y.dims == ("sample", "feature")
            np.testing.assert_array_equal(Y, expected)
    with pytest.raises(ValueError, match="orientation='columns' is neither 'samples' nor 'features'"):
        open_embeddings(array, orientation="columns")


def test_orientation_is_known_by_the_names_of_dimensions(tmp_path):
    array = example()
    named = xr.DataArray(array, dims=("feature", "sample"))
    np.testing.assert_array_equal(open_embeddings(named), array.T)
    np.testing.assert_array_equal(open_embeddings(named, orientation="samples"), array)
    store = zarr.create_array(
        tmp_path / "a.zarr", data=array, chunks=array.shape, dimension_names=["feature", "sample"]
    )
    assert store.shape == array.shape
    np.testing.assert_array_equal(open_embeddings(tmp_path / "a.zarr"), array.T)


def test_more_features_than_any_model_has_are_samples(tmp_path):
    array = np.random.default_rng(0).standard_normal((3, 2**16 + 1), "float32")
    for source in sources(tmp_path, array):
        with pytest.warns(UserWarning, match=r"has shape \(3, 65537\): .* say orientation='features'") as seen:
            Y = open_embeddings(source)
        assert seen[0].filename == __file__
        np.testing.assert_array_equal(Y, array.T)
    assert open_embeddings(array, orientation="samples").shape == array.shape
    assert open_embeddings(xr.DataArray(array, dims=("sample", "x"))).shape == array.shape


def test_windows_have_but_one_orientation(tmp_path):
    torch.save(torch.ones(2, 3, 4), tmp_path / "rows.pt")
    with pytest.raises(ValueError, match="holds windows of samples: leave orientation out"):
        open_embeddings(tmp_path / "rows.pt", orientation="features")


# --- packages that are missing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "package", "extra"),
    [
        (".h5", "h5py", "formats"),
        (".arrow", "pyarrow", "formats"),
        (".parquet", "pyarrow", "formats"),
        (".pt", "torch", "harvest"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(suffix, package, extra, tmp_path, monkeypatch):
    path = written(tmp_path, f"rows{suffix}", example())
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'rows\{suffix} needs {package} .* pip install "dbksvd-dask\[{extra}\]"'):
        open_embeddings(path)
