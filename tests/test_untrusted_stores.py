"""Stores from elsewhere: opening and reading them runs no code, takes no memory by mere claims, and stays inside."""

import json
import os
import pickle
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import fsspec
import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.registry import register_codec
from zarr.storage import LocalStore

from dbksvd_dask import Dictionary, SparseCodes, open_codes, open_dictionary, open_embeddings
from dbksvd_dask.store import open_store, publish_store, write_store

N_SAMPLES, N_FEATURES = 4, 3
PICKLE = {"id": "pickle", "protocol": 5}


def example():
    return np.random.default_rng(0).standard_normal((N_SAMPLES, N_FEATURES)).astype("float32")


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def touched(tmp_path):
    return tmp_path / "touched"


@pytest.fixture(autouse=True)
def older_numcodecs(monkeypatch):
    """Newer versions unpickle only where that is allowed; what is shown here must not depend on it."""
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)


# --- no code is run --------------------------------------------------------------------------------------------------


def array_2(dtype="<f4", shape=(N_SAMPLES, N_FEATURES), filters=None, compressor=None, **more):
    """Metadata of an array in one chunk, as zarr 2 has them."""
    harmless = {"zarr_format": 2, "order": "C", "fill_value": 0 if dtype != "|O" else None}
    given = {"shape": shape, "chunks": shape, "dtype": dtype, "filters": filters, "compressor": compressor}
    return harmless | given | more


def array_3(codecs, data_type="float32", shape=(N_SAMPLES, N_FEATURES), **more):
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": ["sample", "feature"][: len(shape)],
    } | more


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def group_2(folder, arrays, attributes=None, consolidated=None):
    """A group of arrays {name: (metadata, content of the only chunk)}, as xarray writes it in zarr 2."""
    entries = {".zgroup": {"zarr_format": 2}, ".zattrs": attributes or {}}
    for name, (metadata, content) in arrays.items():
        dims = {"sample": ["sample"], "document": ["sample"]}.get(name, ["sample", "feature"])
        entries |= {f"{name}/.zarray": metadata, f"{name}/.zattrs": {"_ARRAY_DIMENSIONS": dims}}
        put(folder / name / ".".join("0" * len(metadata["shape"])), content)
    for name, entry in entries.items():
        put(folder / name, entry)
    put(folder / ".zmetadata", {"zarr_consolidated_format": 1, "metadata": entries | (consolidated or {})})
    return folder


def group_3(folder, arrays, consolidated):
    put(folder / "zarr.json", {
        "zarr_format": 3, "node_type": "group", "attributes": {},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": consolidated},
    })  # fmt: skip
    for name, (metadata, content) in arrays.items():
        put(folder / name / "zarr.json", metadata)
        put(folder / name / "c" / "/".join("0" * len(metadata["shape"])), content)
    return folder


HARMLESS = array_2(), example().tobytes()


def text_after_a_pickle(shape=(N_SAMPLES,)):
    """The filter of the text comes first, so that zarr takes the array for text; the pickle is decoded before."""
    return array_2("|O", shape, [{"id": "vlen-utf8"}, PICKLE])


def pickle_in_a_coordinate(folder, payload):
    return group_2(folder, {"rows": HARMLESS, "document": (text_after_a_pickle(), payload)})


def pickle_in_another_array(folder, payload):
    return group_2(folder, {"rows": HARMLESS, "tokens": (text_after_a_pickle((N_SAMPLES, N_FEATURES)), payload)})


def pickle_in_consolidated_metadata_only(folder, payload):
    consolidated = {"document/.zarray": text_after_a_pickle()}
    return group_2(folder, {"rows": HARMLESS, "document": (array_2("<i8", (N_SAMPLES,)), payload)}, None, consolidated)


def zarr_2_in_consolidated_metadata_of_zarr_3(folder, payload):
    harmless = array_3([{"name": "bytes", "configuration": {"endian": "little"}}])
    hostile = text_after_a_pickle() | {"node_type": "array", "attributes": {}, "dimension_separator": "."}
    group_3(folder, {"rows": (harmless, example().tobytes())}, {"rows": harmless, "document": hostile})
    put(folder / "document" / "0", payload)
    return folder


def zarr_2_metadata_in_a_file_of_zarr_3(folder, payload):
    group_3(folder, {"rows": HARMLESS}, {})
    put(folder / "rows" / "zarr.json", text_after_a_pickle() | {"node_type": "array", "attributes": {}})
    put(folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})
    return folder


def pickle_in_the_index(folder, payload):
    """Which xarray loads as it opens the group."""
    return group_2(folder, {"rows": HARMLESS, "sample": (text_after_a_pickle(), payload)})


def pickle_as_filter(folder, payload):
    return group_2(folder, {"rows": (array_2(filters=[PICKLE]), payload)})


def pickle_as_compressor(folder, payload):
    return group_2(folder, {"rows": (array_2(compressor=PICKLE), payload)})


def pickled_objects(folder, payload):
    return group_2(folder, {"rows": (array_2("|O", filters=[PICKLE]), payload)})


RUN_BY_ZARR = [pickle_in_a_coordinate, pickle_in_another_array, pickle_in_consolidated_metadata_only]
RUN_BY_XARRAY_AT_OPENING = [pickle_in_the_index]
# What zarr 3.1 happens not to open.
REFUSED = [
    pickle_as_filter,
    pickle_as_compressor,
    pickled_objects,
    zarr_2_in_consolidated_metadata_of_zarr_3,
]


def payload_of(touched):
    return pickle.dumps(Payload(touched))


@pytest.mark.parametrize("hostile", RUN_BY_ZARR)
def test_zarr_itself_runs_the_payload(hostile, tmp_path, touched):
    """Else the tests below could not fail."""
    group = zarr.open_group(hostile(tmp_path / "store.zarr", payload_of(touched)), mode="r")
    with pytest.raises(Exception):  # noqa: B017, PT011
        _ = [array[...] for _, array in group.arrays()]
    assert touched.exists()


@pytest.mark.parametrize("hostile", RUN_BY_XARRAY_AT_OPENING)
def test_xarray_itself_runs_the_payload_when_it_opens_the_store(hostile, tmp_path, touched):
    with pytest.raises(Exception):  # noqa: B017, PT011
        xr.open_zarr(hostile(tmp_path / "store.zarr", payload_of(touched)))
    assert touched.exists()


@pytest.mark.parametrize("hostile", RUN_BY_ZARR + RUN_BY_XARRAY_AT_OPENING + REFUSED)
@pytest.mark.parametrize("open_it", [open_embeddings, open_dictionary, open_codes])
def test_a_store_that_could_run_code_is_refused(open_it, hostile, tmp_path, touched):
    store = hostile(tmp_path / "store.zarr", payload_of(touched))
    with pytest.raises(ValueError, match=r"store\.zarr: .*('pickle'|'\|O').*known to run no code.*trust"):
        open_it(store)
    assert not touched.exists()


def test_metadata_of_another_format_than_their_file_are_refused(tmp_path, touched):
    store = zarr_2_metadata_in_a_file_of_zarr_3(tmp_path / "store.zarr", payload_of(touched))
    with pytest.raises(ValueError, match=r"store\.zarr: the array 'rows' uses the codec 'pickle'"):
        open_embeddings(store)
    assert not touched.exists()


@pytest.mark.parametrize("hostile", [pickle_as_filter, pickle_in_the_index])
def test_from_an_object_store_too(hostile, tmp_path, touched):
    store = hostile(tmp_path / "store.zarr", payload_of(touched))
    fsspec.filesystem("memory").put(str(store), "/hostile.zarr", recursive=True)
    with pytest.raises(ValueError, match=r"memory://hostile\.zarr: .*'pickle'"):
        open_embeddings("memory://hostile.zarr")
    assert not touched.exists()


@pytest.mark.parametrize(("kind", "open_it"), [("dictionary", open_dictionary), ("codes", open_codes)])
def test_a_store_that_says_it_is_of_this_package_is_no_exception(kind, open_it, tmp_path, touched):
    attributes = {"format": f"dbksvd_dask {kind}", "format_version": 1, "n_atoms": 3, "n_nonzero_coefs": 1}
    hostile = text_after_a_pickle(), payload_of(touched)
    arrays = dict.fromkeys(("atoms", "indices", "values"), HARMLESS) | {"sample": hostile}
    with pytest.raises(ValueError, match="'pickle'"):
        open_it(group_2(tmp_path / "store.zarr", arrays, attributes))
    assert not touched.exists()


@pytest.mark.parametrize(
    "codecs",
    [
        [{"name": "numcodecs.pickle", "configuration": {}}],
        [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "elsewhere.codec"}],
        ["bytes", "elsewhere.codec"],
        [{"id": "zlib", "name": "elsewhere.codec"}],
        [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [N_SAMPLES, N_FEATURES],
                    "codecs": [{"name": "bytes"}, {"name": "elsewhere.codec"}],
                    "index_codecs": [{"name": "bytes"}],
                },
            }
        ],
        [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [N_SAMPLES, N_FEATURES],
                    "codecs": [{"name": "bytes"}],
                    "index_codecs": [{"name": "bytes"}, {"name": "elsewhere.codec"}],
                },
            }
        ],
        [{"name": "numcodecs.astype", "configuration": {"encode_dtype": "|O", "decode_dtype": "float32"}}],
        [{"name": "numcodecs.delta", "configuration": {"dtype": "O"}}],
    ],
    ids=lambda codecs: str(codecs)[-60:],
)
@pytest.mark.parametrize("where", ["array", "consolidated"])
def test_codecs_of_zarr_3_that_are_not_known_are_refused(where, codecs, tmp_path):
    array = array_3(codecs)
    if where == "array":
        put(tmp_path / "store.zarr" / "zarr.json", array)
        put(tmp_path / "store.zarr" / "c" / "0" / "0", example().tobytes())
    else:
        group_3(tmp_path / "store.zarr", {"rows": (array, example().tobytes())}, {"rows": array})
    with pytest.raises(ValueError, match=r"uses the codec .* not among those that are known to run no code"):
        open_embeddings(tmp_path / "store.zarr")


def test_a_codec_that_is_installed_and_registered_is_refused_before_it_is_made(tmp_path, touched):
    class Installed:
        @classmethod
        def from_dict(cls, settings):
            touched.touch()
            raise ValueError

    register_codec("installed.codec", Installed)
    put(tmp_path / "store.zarr" / "zarr.json", array_3([{"name": "installed.codec"}]))
    with pytest.raises(Exception):  # noqa: B017, PT011
        zarr.open(tmp_path / "store.zarr", mode="r")
    assert touched.exists()  # else this test could not fail
    touched.unlink()
    with pytest.raises(ValueError, match=r"uses the codec 'installed\.codec'"):
        open_embeddings(tmp_path / "store.zarr")
    assert not touched.exists()


@pytest.mark.parametrize("dtype", ["|O", "O", [["a", "|O"]], "i4,O", {"name": "object"}, None, 7])
def test_dtypes_of_zarr_2_that_are_not_plain_are_refused(dtype, tmp_path):
    with pytest.raises(ValueError, match=r"has the dtype .* not among those that are known to run no code"):
        open_embeddings(group_2(tmp_path / "store.zarr", {"rows": (array_2(dtype), b"")}))


@pytest.mark.parametrize(
    "dtype", ["object", {"name": "structured", "configuration": {"fields": []}}, None, ["float32"]]
)
def test_dtypes_of_zarr_3_that_are_not_plain_are_refused(dtype, tmp_path):
    put(tmp_path / "store.zarr" / "zarr.json", array_3([{"name": "bytes"}], dtype))
    with pytest.raises(ValueError, match=r"has the dtype .* not among those that are known to run no code"):
        open_embeddings(tmp_path / "store.zarr")


@pytest.mark.parametrize("save", [np.save, np.savez])
def test_pickles_in_files_of_numpy_are_refused(save, tmp_path, touched):
    path = tmp_path / ("rows.npy" if save is np.save else "rows.npz")
    save(path, np.array([[Payload(touched)]], dtype=object))
    with pytest.raises((TypeError, ValueError), match=r"dtype object|no two-dimensional floating array"):
        open_embeddings(path)
    assert not touched.exists()
    loaded = np.load(path, allow_pickle=True)
    assert save is np.save or loaded["arr_0"].size == 1
    assert touched.exists()  # else this test could not fail


# --- what is harmless opens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"compressor": numcodecs.Blosc("zstd", shuffle=2)},
        {"compressor": numcodecs.Zstd(3)},
        {"compressor": numcodecs.GZip()},
        {"compressor": numcodecs.Zlib()},
        {"compressor": numcodecs.BZ2()},
        {"compressor": numcodecs.LZMA()},
        {"compressor": numcodecs.LZ4()},
        {"compressor": None},
        {"filters": [numcodecs.Shuffle(4)], "compressor": numcodecs.Zlib()},
        {"filters": [numcodecs.Delta("<f4", "<f4")]},
        {"filters": [numcodecs.CRC32()]},
        {"filters": [numcodecs.Adler32()]},
    ],
    ids=str,
)
def test_the_usual_codecs_of_zarr_2_open(settings, tmp_path):
    rows = np.arange(12, dtype="float32").reshape(N_SAMPLES, N_FEATURES)
    array = zarr.create(
        rows.shape, chunks=(2, N_FEATURES), dtype="f4", store=tmp_path / "a.zarr", zarr_format=2, **settings
    )
    array[...] = rows + 1
    np.testing.assert_array_equal(open_embeddings(tmp_path / "a.zarr"), rows + 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"compressors": None},
        {"compressors": [zarr.codecs.BloscCodec()]},
        {"compressors": [zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()]},
        {"compressors": [zarr.codecs.ZstdCodec(checksum=True)]},
        {"filters": [zarr.codecs.TransposeCodec(order=(1, 0))]},
        {"serializer": zarr.codecs.BytesCodec(endian="big")},
        {"shards": (4, N_FEATURES), "compressors": [zarr.codecs.BloscCodec()]},
        {"compressors": [{"name": "numcodecs.lz4", "configuration": {"acceleration": 1}}]},
    ],
    ids=["default", "uncompressed", "blosc", "gzip crc32c", "zstd", "transposed", "big-endian", "sharded", "lz4"],
)
def test_the_usual_codecs_of_zarr_3_open(settings, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numcodecs in zarr 3 is not specified yet
        zarr.create_array(tmp_path / "a.zarr", data=example(), chunks=(2, N_FEATURES), **settings)
        np.testing.assert_array_equal(open_embeddings(tmp_path / "a.zarr"), example())


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_coordinates_of_every_plain_kind_open(zarr_format, tmp_path):
    number = np.arange(N_SAMPLES)
    coordinates = {
        "flag": number > 1,
        "whole": number,
        "real": number / 2,
        "time": np.datetime64("2025-05-27", "ns") + number,
        "lag": number.astype("timedelta64[s]"),
        "fixed": np.array(["a", "b", "", "ü"]),
        "text": np.array(["a", "b", "", "ü"], dtype=object),
        "bytes": np.array([b"a", b"b", b"", b"c"]),
    }
    rows = xr.DataArray(
        example(), dims=("sample", "feature"), coords={name: ("sample", c) for name, c in coordinates.items()}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some data types have no specification in zarr 3 yet
        rows.to_dataset(name="rows").to_zarr(tmp_path / "rows.zarr", zarr_format=zarr_format)
        opened = open_embeddings(tmp_path / "rows.zarr")
        for name, coordinate in coordinates.items():
            assert opened[name].values.tolist() == coordinate.tolist(), name


def test_attributes_are_only_text(tmp_path):
    attributes = {
        "__reduce__": "os.system",
        "codecs": [PICKLE],
        "dtype": "|O",
        "filters": [PICKLE],
        "x": {"id": "pickle"},
    }
    group_2(tmp_path / "rows.zarr", {"rows": HARMLESS}, attributes)
    put(tmp_path / "rows.zarr" / "rows" / ".zattrs", attributes | {"_ARRAY_DIMENSIONS": ["sample", "feature"]})
    np.testing.assert_array_equal(open_embeddings(tmp_path / "rows.zarr"), example())


# --- claims take no memory -------------------------------------------------------------------------------------------

HUGE = 10**12


def huge_rows(folder):
    return group_2(folder, {"rows": (array_2() | {"shape": [HUGE, 3]}, example().tobytes())})


def huge_chunks(folder):
    return group_2(folder, {"rows": (array_2(shape=[HUGE, 3]), example().tobytes())})


def huge_index(folder):
    huge = array_2("<i8", (N_SAMPLES,)) | {"shape": [HUGE], "chunks": [HUGE]}
    return group_2(folder, {"rows": (array_2(shape=[HUGE, 3]), b""), "sample": (huge, b"")})


def huge_coordinate_in_small_chunks(folder):
    document = array_2("<i8", (N_SAMPLES,)) | {"shape": [HUGE], "chunks": [1]}
    return group_2(folder, {"rows": (array_2(shape=[HUGE, 3]), b""), "document": (document, b"")})


@pytest.mark.parametrize(
    ("huge", "message"),
    [
        (huge_rows, "declares shape .* in 250000000000 chunks.*is its metadata damaged"),
        (huge_index, "is an index of .* GiB.*is its metadata damaged"),
        (huge_coordinate_in_small_chunks, "'document'.* declares shape .* in 1000000000000 chunks"),
    ],
)
def test_shapes_that_nobody_has_are_refused_without_taking_memory(huge, message, tmp_path):
    store = huge(tmp_path / "store.zarr")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            open_embeddings(store)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_a_chunk_that_claims_to_be_huge_opens_and_is_named_when_it_is_read(tmp_path):
    embeddings = open_embeddings(huge_chunks(tmp_path / "store.zarr"))
    assert embeddings.shape == (HUGE, 3)
    with pytest.raises(ValueError, match=r"store\.zarr \('rows'\): rows 0 to \d+ cannot be read"):
        embeddings[:5].compute()


@pytest.mark.parametrize("save", [np.save, np.savez])
def test_files_that_claim_more_rows_than_they_have_are_refused(save, tmp_path):
    path = tmp_path / ("rows.npy" if save is np.save else "rows.npz")
    np.save(tmp_path / "rows.npy", example())
    content = (tmp_path / "rows.npy").read_bytes().replace(b"(4, 3), }   ", b"(4444, 3), }")
    if save is np.savez:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("rows.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"rows\.np. .*is cut off"):
        open_embeddings(path)


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret", "/secret", "a/../../secret", "./rows"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_names_that_lead_out_of_the_store_are_refused(zarr_format, name, tmp_path):
    zarr.create_array(tmp_path / "secret", data=example(), zarr_format=zarr_format)
    metadata = array_3([{"name": "bytes", "configuration": {"endian": "little"}}])
    if zarr_format == 2:
        consolidated = {f"{name}/.zarray": array_2(), f"{name}/.zattrs": {"_ARRAY_DIMENSIONS": ["sample", "feature"]}}
        store = group_2(tmp_path / "store.zarr", {}, consolidated=consolidated)
    else:
        store = group_3(tmp_path / "store.zarr", {}, {name: metadata})
    with pytest.raises(ValueError, match=r"store\.zarr has an array called .*, which is not inside of it"):
        open_embeddings(store, name=name)


ODD_NAMES = [
    "a b.zarr",
    "a#b.zarr",
    "a%20b.zarr",
    "ünï🙂.zarr",
    "12:30.zarr",
    "s3:bucket.zarr",
    "a::b.zarr",
    "[a]*?.zarr",
    "-o.zarr",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_names_of_local_folders(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", example())
    os.rename("rows.npy", f"{name}.npy")
    np.testing.assert_array_equal(open_embeddings(f"{name}.npy"), example())

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")
        xr.Dataset({"rows": (("sample", "feature"), example())}).to_zarr(LocalStore(tmp_path / name))
    np.testing.assert_array_equal(open_embeddings(name), example())

    codes = SparseCodes(np.zeros((4, 1), "int32"), np.ones((4, 1)), 3)
    for path in (f"codes {name}", f"deeper/../deeper/{name}", str(tmp_path / "absolute" / name)):
        codes.to_zarr(path)
        codes.to_zarr(path, overwrite=True)
        np.testing.assert_array_equal(open_codes(path).values, codes.values)
        assert (tmp_path / path / "zarr.json").exists()
    assert sorted(entry.name for entry in (tmp_path / "deeper").iterdir()) == [name]

    publish_store(xr.Dataset({"x": 1.0}), f"published {name}", "example")
    assert open_store(f"published {name}", "example", ["x"]).x == 1


def test_a_link_to_a_store_opens(tmp_path):
    Dictionary(np.eye(3), 1).to_zarr(tmp_path / "dictionary.zarr")
    (tmp_path / "latest.zarr").symlink_to("dictionary.zarr")
    np.testing.assert_array_equal(open_dictionary(tmp_path / "latest.zarr").atoms, np.eye(3))


def test_the_parent_of_a_link_is_that_of_its_target(tmp_path, monkeypatch):
    """As for every other program: the path is not shortened."""
    (tmp_path / "disk" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/folder")
    Dictionary(np.eye(3), 1).to_zarr(tmp_path / "link" / ".." / "dictionary.zarr")
    assert (tmp_path / "disk" / "dictionary.zarr").exists()
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(open_dictionary("link/../dictionary.zarr").atoms, np.eye(3))


def test_links_inside_a_store_are_followed(tmp_path):
    """As large stores have some of their arrays on another disk."""
    zarr.create_array(tmp_path / "elsewhere", data=example())
    (tmp_path / "rows.zarr").mkdir()
    for name in ("zarr.json", "c"):
        (tmp_path / "rows.zarr" / name).symlink_to(tmp_path / "elsewhere" / name)
    np.testing.assert_array_equal(open_embeddings(tmp_path / "rows.zarr"), example())


@pytest.mark.parametrize("path", ["/", "/tmp", ".", "..", "~", "folder/.."])
@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_that_are_no_stores_are_never_replaced(path, overwrite, tmp_path, monkeypatch):
    (tmp_path / "home" / "folder").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    with pytest.raises(FileExistsError):
        write_store(xr.Dataset({"x": 1.0}), path, "example", overwrite=overwrite)
    with pytest.raises(FileExistsError):
        publish_store(xr.Dataset({"x": 1.0}), path, "example")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["home", "folder"]


def test_an_empty_path_is_named():
    for open_it in (open_embeddings, open_dictionary, open_codes):
        with pytest.raises(ValueError, match="the path is empty"):
            open_it("")
    with pytest.raises(ValueError, match="the path is empty"):
        Dictionary(np.eye(3), 1).to_zarr("")
