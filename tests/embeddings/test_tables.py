"""open_embeddings of Arrow, Feather and Parquet tables, and of the folders of SAELens and datasets."""

import json
import os
import tempfile
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbksvd_dask import open_embeddings
from dbksvd_dask.contexts import open_contexts
from dbksvd_dask.embeddings import chunking

pa = pytest.importorskip("pyarrow", reason="needs dbksvd-dask[formats]")
feather = pytest.importorskip("pyarrow.feather")
parquet = pytest.importorskip("pyarrow.parquet")

N_SAMPLES, N_FEATURES, LENGTH = 60, 6, 5
N_FLIPS = 40


def example(dtype="float32"):
    return np.random.default_rng(0).standard_normal((N_SAMPLES, N_FEATURES)).astype(dtype)


def lists(array, kind="fixed"):
    """Nested lists as deep as the array has dimensions."""
    column = pa.array(np.ascontiguousarray(array).reshape(-1))
    for depth in range(array.ndim - 1, 0, -1):
        size = array.shape[depth]
        n_lists = len(column) // size if size else len(array)
        if kind == "fixed":
            column = pa.FixedSizeListArray.from_arrays(column, size)
        elif kind == "large":
            column = pa.LargeListArray.from_arrays(pa.array(np.arange(n_lists + 1) * size, "int64"), column)
        else:
            column = pa.ListArray.from_arrays(pa.array(np.arange(n_lists + 1) * size, "int32"), column)
    return column


def table(array=None, kind="fixed", **columns):
    """With columns of other types before and after that of the embeddings."""
    array = example() if array is None else array
    n = len(array)
    before = {
        "text": pa.array([f"text {i}" for i in range(n)]),
        "label": pa.array([None if i % 3 else "rare" for i in range(n)]).dictionary_encode(),
        "more": pa.array([{"x": i, "names": ["a"] * (i % 3)} for i in range(n)]),
        "nothing": pa.nulls(n),
        "yes": pa.array([True] * n),
        "document": pa.array(np.arange(n) // 10, "int32"),
        "gaps": pa.array([None, *range(1, n)], "int64"),
    }
    return pa.table({**before, "rows": lists(array, kind), **columns})


def as_stream(path, content, compression=None, batch=None):
    with pa.ipc.new_stream(path, content.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(content, max_chunksize=batch)
    return path


def as_file(path, content, compression=None, batch=None):
    with pa.ipc.new_file(path, content.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(content, max_chunksize=batch)
    return path


def as_feather(path, content, compression="lz4", batch=None):
    feather.write_feather(content, path, compression=compression or "uncompressed", chunksize=batch)
    return path


def as_parquet(path, content, compression="snappy", batch=None):
    without = [name for name in ("nothing",) if name in content.column_names]
    parquet.write_table(content.drop_columns(without), path, compression=compression or "none", row_group_size=batch)
    return path


FORMATS = [(as_stream, "arrow"), (as_file, "ipc"), (as_feather, "feather"), (as_parquet, "parquet")]


@pytest.fixture
def small_chunks(monkeypatch):
    """Of 16 rows of the example in float32."""
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 16 * N_FEATURES * 4)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("kind", ["fixed", "list", "large"])
@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize(("write", "suffix"), FORMATS)
def test_one_list_a_sample(write, suffix, compression, kind, tmp_path):
    for dtype, batch in [("float32", 7), ("float16", 25), ("float64", N_SAMPLES)]:
        path = write(tmp_path / f"rows.{suffix}", table(example(dtype), kind), compression, batch)
        Y = open_embeddings(path)
        assert Y.name == "rows"
        assert Y.dims == ("sample", "feature")
        assert Y.dtype == dtype
        assert sorted(Y.coords) == ["document"]  # that with gaps does not tell something of each sample
        np.testing.assert_array_equal(Y, example(dtype))
        np.testing.assert_array_equal(Y[37:3:-5], example(dtype)[37:3:-5])
        np.testing.assert_array_equal(Y.document, np.arange(N_SAMPLES) // 10)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("kind", ["fixed", "list", "large"])
@pytest.mark.parametrize(("write", "suffix"), FORMATS)
def test_windows_of_samples(write, suffix, kind, tmp_path):
    windows = example().reshape(-1, LENGTH, N_FEATURES)
    tokens = np.arange(N_SAMPLES).reshape(-1, LENGTH)
    content = table(windows, kind, token_ids=lists(tokens, kind), scores=lists(example()[: len(windows)], kind))
    Y = open_embeddings(write(tmp_path / f"rows.{suffix}", content, batch=5), name="rows")
    np.testing.assert_array_equal(Y, example())
    np.testing.assert_array_equal(Y.token_id, np.arange(N_SAMPLES))
    np.testing.assert_array_equal(Y.context, np.arange(N_SAMPLES) // LENGTH)
    np.testing.assert_array_equal(Y.position, np.arange(N_SAMPLES) % LENGTH)
    assert sorted(Y.coords) == ["context", "position", "token_id"]


def test_slices_of_a_table_have_offsets_that_do_not_begin_at_zero(tmp_path):
    content = table(kind="list").slice(13, 30)
    for write, suffix in FORMATS:
        Y = open_embeddings(write(tmp_path / f"rows.{suffix}", content, batch=11))
        np.testing.assert_array_equal(Y, example()[13:43])


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_batches_chunks_and_lists(data):
    write, suffix = data.draw(st.sampled_from(FORMATS))
    n, length, batch = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 12))
    shape = data.draw(st.sampled_from([(n, 3), (n, length, 3)]))
    array = np.random.default_rng(0).standard_normal(shape).astype("float32")
    content = pa.table({"rows": lists(array, data.draw(st.sampled_from(["fixed", "list", "large"])))})
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "CHUNK_BYTES", data.draw(st.integers(12, 400)))
        compression = data.draw(st.sampled_from([None, "zstd"]))
        path = write(f"{folder}/rows.{suffix}", content, compression, batch)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*row groups of up to")
            Y = open_embeddings(path)
        np.testing.assert_array_equal(Y, array.reshape(-1, 3))


def test_chunks_of_what_is_compressed_end_with_its_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 16 * N_FEATURES * 4)
    for write, suffix in FORMATS[2:]:
        path = write(tmp_path / f"rows.{suffix}", table(), batch=7)
        assert open_embeddings(path).chunks[0] == (14, 14, 14, 14, 4)
    path = as_stream(tmp_path / "rows.arrow", table(), batch=7)
    assert open_embeddings(path).chunks[0] == (16, 16, 16, 12)


def test_a_large_row_group_is_read_in_parts_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", N_FEATURES * 4)
    path = as_parquet(tmp_path / "rows.parquet", table())
    with pytest.warns(UserWarning, match=r"rows\.parquet has row groups of up to 60 rows.*row_group_size=1") as seen:
        Y = open_embeddings(path)
    assert seen[0].filename == __file__
    assert Y.chunks[0] == (16, 16, 16, 12)
    np.testing.assert_array_equal(Y, example())


# --- folders of datasets ---------------------------------------------------------------------------------------------


def dataset_folder(path, features, columns, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets = pytest.importorskip("datasets", reason="needs dbksvd-dask[interop]")
        datasets.disable_progress_bars()
        datasets.Dataset.from_dict(columns, features=features(datasets)).save_to_disk(path, **options)
    return path


def saelens(path, dtype="float32", **options):
    """The features that SAELens' CacheActivationsRunner has."""

    def features(d):
        tokens = d.Sequence(d.Value("int32"), length=LENGTH)
        return d.Features({"blocks.3.hook_resid": d.Array2D((LENGTH, N_FEATURES), dtype), "token_ids": tokens})

    columns = {
        "blocks.3.hook_resid": example(dtype).reshape(-1, LENGTH, N_FEATURES),
        "token_ids": np.arange(N_SAMPLES).reshape(-1, LENGTH),
    }
    return dataset_folder(path, features, columns, **options)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("num_shards", [1, 5])
def test_windows_as_saelens_caches_them(dtype, num_shards, tmp_path):
    Y = open_embeddings(saelens(tmp_path / "cache", dtype, num_shards=num_shards))
    assert Y.name == "blocks.3.hook_resid"
    np.testing.assert_array_equal(Y, example(dtype))
    np.testing.assert_array_equal(Y.token_id, np.arange(N_SAMPLES))
    np.testing.assert_array_equal(Y.context, np.arange(N_SAMPLES) // LENGTH)


@pytest.mark.parametrize("length", [N_FEATURES, -1])
def test_plain_lists_in_a_dataset(length, tmp_path):
    def features(d):
        return d.Features({"text": d.Value("string"), "rows": d.Sequence(d.Value("float32"), length=length)})

    columns = {"text": [str(i) for i in range(N_SAMPLES)], "rows": example()}
    Y = open_embeddings(dataset_folder(tmp_path / "rows", features, columns, num_shards=3))
    np.testing.assert_array_equal(Y, example())


def changed(folder, **entries):
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, **entries}))
    return folder


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
    return path


def without(path, name):
    (path / name).unlink()
    return path


def splits(path):
    saelens(path / "train")
    (path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    return path


def other_shard(path):
    saelens(path, num_shards=2)
    as_stream(path / "data-00001-of-00002.arrow", table(example()[:, :4]))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (splits, r"is a dataset in several splits: open one of .*cache/train"),
        (lambda p: without(saelens(p), "state.json"), r"cache is not a readable dataset .*half written"),
        (lambda p: without(saelens(p, num_shards=2), "data-00001-of-00002.arrow"), "lacks its data file data-00001"),
        (lambda p: changed(saelens(p), _data_files=[]), "cache is empty"),
        (lambda p: changed(saelens(p), _data_files=[{"filename": "../x.arrow"}]), r"'\.\./x\.arrow', .* not inside"),
        (lambda p: changed(saelens(p), _indices_data_files=[{"filename": "i.arrow"}]), r"flatten_indices\(\)"),
        (other_shard, r"data-00001-of-00002.arrow has other columns than .*data-00000-of-00002.arrow: .*\(4,\)"),
    ],
)
def test_folders_that_are_not_whole_are_named(make, message, tmp_path):
    path = make(tmp_path / "cache")
    with pytest.raises(ValueError, match=message):
        open_embeddings(path)


def test_a_shuffled_dataset_is_read_in_its_order(tmp_path):
    """`save_to_disk` writes the rows as its indices order them."""
    saelens(tmp_path / "cache")
    datasets = pytest.importorskip("datasets")
    shuffled = datasets.load_from_disk(tmp_path / "cache").shuffle(seed=0)
    shuffled.save_to_disk(tmp_path / "shuffled")
    expected = np.array(shuffled["blocks.3.hook_resid"], "float32").reshape(-1, N_FEATURES)
    assert not np.array_equal(expected, example())
    np.testing.assert_array_equal(open_embeddings(tmp_path / "shuffled"), expected)


def test_a_cache_tells_no_contexts(tmp_path):
    """Which are looked for in the zarr store that embeddings are from."""
    folder = saelens(tmp_path / "cache")
    assert open_contexts(folder).tokens is None
    assert open_contexts(open_embeddings(folder)).tokens is None


# --- bad input -------------------------------------------------------------------------------------------------------


def ragged(path, write):
    rows = example().tolist()
    rows[41] = rows[41][:2]
    return write(path, pa.table({"rows": pa.array(rows, pa.list_(pa.float32()))}), batch=20)


@pytest.mark.parametrize(("write", "suffix"), FORMATS)
def test_lists_of_several_lengths_are_named(write, suffix, tmp_path):
    path = ragged(tmp_path / f"rows.{suffix}", write)
    with pytest.raises(ValueError, match=rf"rows\.{suffix}.*'rows'.*(length|long|2 elements)"):
        open_embeddings(path).compute()


def test_lists_whose_lengths_add_up_are_named_with_their_rows(tmp_path):
    rows = example().tolist()
    rows[41], rows[42] = rows[41][:2], rows[42] + rows[41][2:]
    path = as_stream(tmp_path / "rows.arrow", pa.table({"rows": pa.array(rows, pa.list_(pa.float32()))}), batch=20)
    with pytest.raises(ValueError, match=r"rows\.arrow.*: rows 0 to 59 cannot be read \(list 1 of a batch .* 2 elem"):
        open_embeddings(path).compute()


@pytest.mark.parametrize(("write", "suffix"), FORMATS)
@pytest.mark.parametrize("null", [None, [None] * N_FEATURES])
def test_nulls_are_named(null, write, suffix, tmp_path):
    rows = [null, *example()[1:].tolist()]
    path = write(tmp_path / f"rows.{suffix}", pa.table({"rows": pa.array(rows, pa.list_(pa.float32(), N_FEATURES))}))
    with pytest.raises(ValueError, match=rf"rows\.{suffix}.*null"):
        open_embeddings(path).compute()


@pytest.mark.parametrize(("write", "suffix"), FORMATS)
@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.97])
def test_files_that_are_cut_off_are_named(share, write, suffix, tmp_path):
    path = write(tmp_path / f"rows.{suffix}", table(), batch=7)
    cut(path, int(share * path.stat().st_size))
    with pytest.raises(ValueError, match=rf"rows\.{suffix} is (cut off|not a readable).*written or copied"):
        open_embeddings(path)


def test_a_stream_says_after_which_row_it_is_cut_off(tmp_path):
    path = as_stream(tmp_path / "rows.arrow", pa.table({"rows": lists(example())}), batch=20)
    cut(path, path.stat().st_size - 200)
    with pytest.raises(ValueError, match=r"rows\.arrow is cut off after 40 rows"):
        open_embeddings(path)
    as_stream(path, pa.table({"rows": lists(example())}), batch=20)
    cut(path, path.stat().st_size - 8)
    with pytest.raises(ValueError, match=r"rows\.arrow is cut off after 60 rows: its end mark is missing"):
        open_embeddings(path)


@pytest.mark.parametrize(("write", "suffix"), FORMATS)
def test_files_that_are_cut_off_later_are_named_with_their_rows(write, suffix, tmp_path):
    path = write(tmp_path / f"rows.{suffix}", pa.table({"rows": lists(example())}), None)
    Y = open_embeddings(path)
    cut(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=rf"rows\.{suffix}.*: rows 0 to 59 cannot be read"):
        Y.compute()


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize(("write", "suffix"), FORMATS)
def test_flipped_bytes_end_in_an_error_or_in_rows(write, suffix, compression, tmp_path):
    """Never in anything worse, and the shape is what can be there."""
    path = write(tmp_path / f"rows.{suffix}", pa.table({"rows": lists(example(), "list")}), compression, 20)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(N_FLIPS):
        content = bytearray(whole)
        for place in generator.integers(len(whole), size=generator.integers(1, 4)):
            content[place] = generator.integers(256)
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                rows = open_embeddings(path).values
            except (ValueError, TypeError) as error:
                rows, message = None, str(error)
        assert "rows" in message if rows is None else rows.nbytes <= 2 * len(whole)


@pytest.mark.parametrize(("write", "suffix"), FORMATS)
def test_mistakes_are_named(write, suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    numbers = pa.table({"a": pa.array([1.0, 2.0]), "b": pa.array(["x", "y"])})
    with pytest.raises(ValueError, match=rf"rows\.{suffix} has no two- or three-dim.*'a' \(1-D float64\), 'b' \(1-D s"):
        open_embeddings(write(path, numbers))
    with pytest.raises(ValueError, match="is a column of float64, not of lists"):
        open_embeddings(path, name="a")
    with pytest.raises(ValueError, match="is a column of string, not of lists"):
        open_embeddings(path, name="b")
    with pytest.raises(ValueError, match=r"\('embeddings'\) is a column of string, not of lists"):
        open_embeddings(write(path, pa.table({"embeddings": ["x"] * N_SAMPLES, "rows": lists(example())})))
    two = pa.table({"a": lists(example()), "b": lists(example())})
    with pytest.raises(ValueError, match="name='a', name='b'"):
        open_embeddings(write(path, two))
    with pytest.raises(ValueError, match=r"is empty"):
        open_embeddings(write(path, two.select(["a"]).slice(0, 0)))
    with pytest.raises(ValueError, match=r"is empty: shape \(4, 0\)"):
        open_embeddings(write(path, pa.table({"a": pa.array([[]] * 4, pa.list_(pa.float32()))})))
    with pytest.raises(TypeError, match="dtype int64"):
        open_embeddings(write(path, pa.table({"a": lists(np.ones((4, 3), int))})), name="a")
    with pytest.raises(ValueError, match="is a table, whose rows are the samples"):
        open_embeddings(write(path, two.select(["a"])), orientation="features")


def test_old_feather_and_what_is_no_arrow_are_named(tmp_path):
    path = tmp_path / "rows.feather"
    path.write_bytes(b"FEA1" + bytes(100))
    with pytest.raises(ValueError, match=r"rows\.feather is of version 1 of Feather"):
        open_embeddings(path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"rows\.feather is not a readable Arrow stream or file"):
        open_embeddings(path)


def test_columns_of_the_same_name_are_named(tmp_path):
    twice = pa.Table.from_arrays([lists(example()), lists(example())], ["rows", "rows"])
    with pytest.raises(ValueError, match=r"rows\.arrow has several columns of the same name: rows, rows"):
        open_embeddings(as_stream(tmp_path / "rows.arrow", twice))


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_file_is_read_by_its_footer(compression, tmp_path):
    """Polars writes no message for the schema, which Arrow's format has in the footer anyway."""
    path = as_file(tmp_path / "rows.arrow", table(), compression, batch=7)
    content = bytearray(path.read_bytes())
    content[8:16] = b"\x04\0\0\0\xf2\xff\xff\xff"  # where the first message would begin
    path.write_bytes(content)
    with pa.ipc.open_file(path) as file:
        assert file.read_all()["document"].to_pylist() == [i // 10 for i in range(N_SAMPLES)]
    Y = open_embeddings(path)
    np.testing.assert_array_equal(Y, example())
    np.testing.assert_array_equal(Y.document, np.arange(N_SAMPLES) // 10)


@pytest.mark.parametrize(("write", "suffix"), FORMATS[:2])
def test_columns_of_views_and_of_fixed_sizes_are_skipped(write, suffix, tmp_path):
    texts = [f"{'longer than a view itself ' * (i % 5)}{i}" for i in range(N_SAMPLES)]
    before = {
        "text": pa.array(texts, pa.string_view()),
        "words": pa.array([text.encode().split() for text in texts], pa.list_(pa.binary_view())),
        "short": pa.array(["x"] * N_SAMPLES, pa.string_view()),
        "hash": pa.array([b"0123"] * N_SAMPLES, pa.binary(4)),
        "price": pa.array(range(N_SAMPLES), pa.decimal128(5)),
    }
    path = write(
        tmp_path / f"rows.{suffix}", pa.table({**before, "rows": lists(example()), "i": range(N_SAMPLES)}), batch=7
    )
    Y = open_embeddings(path)
    np.testing.assert_array_equal(Y, example())
    np.testing.assert_array_equal(Y.i, range(N_SAMPLES))


def test_a_column_that_cannot_be_skipped_is_named(tmp_path):
    union = pa.UnionArray.from_sparse(pa.array([0] * N_SAMPLES, "int8"), [pa.array(range(N_SAMPLES))])
    path = as_stream(tmp_path / "rows.arrow", pa.table({"either": union, "rows": lists(example())}))
    with pytest.raises(ValueError, match=r"'either', of type .*union.*, lies before 'rows' and cannot be skipped"):
        open_embeddings(path)


def test_nothing_is_left_open(tmp_path):
    for write, suffix in FORMATS:
        Y = open_embeddings(write(tmp_path / f"rows.{suffix}", table()))
        Y.compute()
        opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd.isdigit() and _is(fd)]
        assert str(tmp_path / f"rows.{suffix}") not in opened


def _is(fd):
    return os.path.islink(f"/proc/self/fd/{fd}")
