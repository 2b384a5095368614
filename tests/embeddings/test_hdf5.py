"""open_embeddings of HDF5 files: datasets of Julia and h5py, and what is damaged, half written or elsewhere."""

import fcntl

import numpy as np
import pytest

from dbksvd_dask import open_embeddings
from dbksvd_dask.embeddings import chunking

h5py = pytest.importorskip("h5py", reason="needs dbksvd-dask[formats]")

SHAPE = (50, 6)


def example(dtype="float32"):
    return np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)


def write(path, name="layer_activations", array=None, **options):
    with h5py.File(path, "w", userblock_size=options.pop("userblock_size", 0)) as file:
        file.create_dataset(name, data=example() if array is None else array, **options)
    return path


def compact(path):
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        space, kind = h5py.h5s.create_simple(SHAPE), h5py.h5t.IEEE_F32LE
        h5py.h5d.create(file.id, b"rows", kind, space, properties).write(space, space, example())
    return path


LAYOUTS = {
    "contiguous": {},
    "behind a user block": {"userblock_size": 512},
    "chunked": {"chunks": (7, 4)},
    "compressed": {"chunks": (10, 6), "compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"chunks": (10, 6), "compression": "lzf"},
}


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_in_any_layout(layout, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 20 * SHAPE[1] * np.dtype(dtype).itemsize)
    Y = open_embeddings(write(tmp_path / "rows.h5", array=example(dtype), **LAYOUTS[layout]))
    assert Y.name == "layer_activations"
    assert Y.dims == ("sample", "feature")
    assert Y.dtype == np.dtype(dtype).newbyteorder("=")
    assert len(Y.chunks[0]) > 1
    assert Y.chunks[0][0] % LAYOUTS[layout].get("chunks", (1,))[0] == 0  # no chunk is decoded twice
    np.testing.assert_array_equal(Y, example(dtype))
    np.testing.assert_array_equal(Y[33:-3:2], example(dtype)[33:-3:2])


def test_a_small_dataset_in_the_header(tmp_path):
    np.testing.assert_array_equal(open_embeddings(compact(tmp_path / "rows.hdf5")), example())


@pytest.mark.parametrize("orientation", [None, "features"])
def test_chunks_of_too_many_rows_are_read_in_parts_with_a_warning(orientation, tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", SHAPE[1] * 4)
    stored, chunks = (example(), (50, 1)) if orientation is None else (example().T, (1, 50))
    path = write(tmp_path / "rows.h5", array=stored, chunks=chunks)
    with pytest.warns(
        UserWarning, match=r"rows\.h5 has chunks of 50 samples.* again for every 16 .* e\.g\. 1$"
    ) as seen:
        Y = open_embeddings(path, orientation=orientation)
    assert seen[0].filename == __file__
    assert Y.chunks[0] == (16, 16, 16, 2)
    np.testing.assert_array_equal(Y, example())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_by_samples_as_julia_may_write_them(layout, tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 8 * 50 * 4)
    Y = open_embeddings(write(tmp_path / "rows.h5", **LAYOUTS[layout]), orientation="features")
    assert Y.shape == SHAPE[::-1]
    np.testing.assert_array_equal(Y, example().T)


def test_the_dataset_is_chosen_by_name_wherever_it_is(tmp_path):
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["model/layer3"] = example()
        file["model/layer4"] = -example()
        file["tokens"] = np.arange(50)
    with pytest.raises(ValueError, match="name='model/layer3', name='model/layer4'"):
        open_embeddings(tmp_path / "rows.h5")
    np.testing.assert_array_equal(open_embeddings(tmp_path / "rows.h5", name="model/layer4"), -example())
    with pytest.raises(ValueError, match="no array 'layer5'"):
        open_embeddings(tmp_path / "rows.h5", name="layer5")


def test_a_dataset_without_a_shape_is_named(tmp_path):
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["rows"] = h5py.Empty("f4")
    with pytest.raises(ValueError, match=r"rows\.h5 \('rows'\) is empty: it has no shape"):
        open_embeddings(tmp_path / "rows.h5", name="rows")


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
    return path


def unwritten(path, **options):
    with h5py.File(path, "w") as file:
        file.create_dataset("rows", shape=SHAPE, dtype="f4", **options)
    return path


def half_written(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("rows", shape=SHAPE, dtype="f4", chunks=(10, 6))[:20] = 1
    return path


def elsewhere(path):
    return write(path, "rows", external=[(str(path.parent / "other.bin"), 0, h5py.h5f.UNLIMITED)])


def virtual(path):
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[:] = h5py.VirtualSource(write(path.parent / "other.h5", "rows"), "rows", SHAPE)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("rows", layout)
    return path


def linked(path):
    write(path.parent / "other.h5", "rows")
    with h5py.File(path, "w") as file:
        file["rows"] = h5py.ExternalLink("other.h5", "rows")
    return path


def filtered_by(path, number):
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((10, 6))
        properties.set_filter(number, h5py.h5z.FLAG_OPTIONAL)
        h5py.h5d.create(file.id, b"rows", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(SHAPE), properties)
    return path


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: cut(write(p), 2100), ValueError, r"rows\.h5 is not a readable HDF5 file: .*truncated.*copied"),
        (lambda p: cut(write(p), 0), ValueError, r"rows\.h5 is not a readable HDF5 file: .*signature"),
        (lambda p: write(p, array=example().astype(int)), ValueError, "no two-dimensional floating array"),
        (lambda p: write(p, array=np.array(["a", "b"], object)), ValueError, r"'layer_activations' \(1-D object\)"),
        (lambda p: write(p, array=np.ones((0, 3))), ValueError, r"rows\.h5 \('layer_activations'\) is empty"),
        (unwritten, ValueError, r"rows\.h5 \('rows'\) has no data: was its writing interrupted"),
        (half_written, ValueError, r"rows\.h5 \('rows'\) has no data in 3 of its 5 chunks"),
        (elsewhere, ValueError, r"rows\.h5 \('rows'\) lies in other files"),
        (virtual, ValueError, r"rows\.h5 \('rows'\) lies in other files"),
        (linked, ValueError, r"no two-dimensional floating array; it holds nothing"),
        (lambda p: filtered_by(p, 31999), ValueError, "uses the HDF5 filter 31999, .* known to run no code"),
        (lambda p: filtered_by(p, 32001), ValueError, "is compressed with blosc, which h5py does not have here"),
    ],
)
def test_mistakes_are_named(make, error, message, tmp_path):
    path = make(tmp_path / "rows.h5")
    with pytest.raises(error, match=message):
        open_embeddings(path)


def test_a_file_that_is_open_for_writing_is_named(tmp_path):
    with open(write(tmp_path / "rows.h5")) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # as HDF5 does
        with pytest.raises(ValueError, match=r"rows\.h5 is locked: another program has it open for writing"):
            open_embeddings(tmp_path / "rows.h5")


def test_a_damaged_chunk_is_named_with_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 10 * SHAPE[1] * 4)
    path = write(tmp_path / "rows.h5", "rows", chunks=(10, 6), fletcher32=True)
    with h5py.File(path) as file:
        place = file["rows"].id.get_chunk_info(2).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 5] ^= 255
    path.write_bytes(content)
    Y = open_embeddings(path)
    np.testing.assert_array_equal(Y[:20], example()[:20])
    with pytest.raises(ValueError, match=r"rows\.h5: rows 20 to 29 cannot be read \(.*filter.*damaged"):
        Y.compute()


def test_a_file_that_is_cut_off_later_is_named_with_its_rows(tmp_path):
    path = write(tmp_path / "rows.h5")
    Y = open_embeddings(path)
    cut(path, 2100)
    with pytest.raises(ValueError, match=r"rows\.h5: rows 0 to 49 cannot be read \(rows\.h5 is cut off\)"):
        Y.compute()
