"""Data that fails: what may pass is tried again, anything else is named, and nothing is ever read as zeros instead."""

import errno
import os
import shutil
import time
import warnings
from pathlib import Path
from random import Random

import dask
import dask.array as da
import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr
from distributed import Client, LocalCluster
from fsspec import AbstractFileSystem
from fsspec.registry import known_implementations
from zarr.codecs import BloscCodec, Crc32cCodec

from dbksvd_dask import DBKSVD, Dictionary, SparseCodes, open_codes, open_dictionary, open_embeddings, retry
from dbksvd_dask.embeddings import chunking
from dbksvd_dask.retry import ATTEMPTS, may_pass, retrying
from dbksvd_dask.store import child_names, open_store, publish_store, remove_store

N_SAMPLES, N_FEATURES, N_ATOMS, K, CHUNK = 160, 6, 8, 3, 20


def example():
    return np.random.default_rng(0).standard_normal((N_SAMPLES, N_FEATURES)).astype("float32")


def model(**parameters):
    return DBKSVD(N_ATOMS, K, **({"batch_size": 40, "max_iter": 6, "random_state": 0} | parameters))


class Bucket(AbstractFileSystem):
    """An object store: whole objects by their names, kept in a local folder, that fails as it is told."""

    protocol = "bucket"
    cachable = False
    fault = staticmethod(lambda doing, path: None)
    """Called before each access."""

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("bucket://").rstrip("/")

    def info(self, path, **kwargs):
        self.fault("info", path)
        path = Path(self._strip_protocol(path))
        size = path.stat().st_size
        return {"name": str(path), "size": size, "type": "directory" if path.is_dir() else "file"}

    def ls(self, path, detail=True, **kwargs):
        self.fault("ls", path)
        entries = [self.info(str(entry)) for entry in Path(self._strip_protocol(path)).iterdir()]
        return entries if detail else [entry["name"] for entry in entries]

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.fault("get", path)
        return Path(self._strip_protocol(path)).read_bytes()[start:end]

    def pipe_file(self, path, value, **kwargs):
        self.fault("put", path)
        target = Path(self._strip_protocol(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(value)

    def rm_file(self, path):
        self.fault("delete", path)
        Path(self._strip_protocol(path)).unlink()

    def rm(self, path, recursive=False, maxdepth=None):
        self.fault("delete", path)
        (shutil.rmtree if recursive else os.remove)(self._strip_protocol(path))


@pytest.fixture(scope="module", autouse=True)
def registered():
    fsspec.register_implementation("bucket", Bucket, clobber=True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Seconds of waiting would only make the tests slow."""
    monkeypatch.setattr(retry, "FIRST_PAUSE", 1e-4)


@pytest.fixture
def fail(monkeypatch):
    def let(fault):
        monkeypatch.setattr(Bucket, "fault", staticmethod(fault))

    return let


def flaky(share, failure=ConnectionResetError):
    """Fails so often, at random but the same way each time, and never for good."""
    asked = {}

    def fault(doing, path):
        number = asked[doing, path] = asked.get((doing, path), 0) + 1
        if number % ATTEMPTS and Random(f"{doing} {Path(path).parts[-2:]} {number}").random() < share:
            failed.append(path)
            raise failure(f"{doing} {path}")

    failed = fault.failed = []
    return fault


def written(path, dataset=None, **options):
    """Embeddings in 8 chunks, and a coordinate in 2, none of which is zero."""
    rows = xr.DataArray(
        example(), dims=("sample", "feature"), coords={"document": ("sample", np.arange(N_SAMPLES) // 10 + 1)}
    )
    encoding = {"embeddings": {"chunks": (CHUNK, N_FEATURES)}, "document": {"chunks": (80,)}}
    for name, option in options.pop("encoding", {}).items():
        encoding[name] = encoding[name] | option
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")
        rows.to_dataset(name="embeddings").to_zarr(path, encoding=encoding, **options)
    return path


def sharded(path):
    encoding = {"embeddings": {"chunks": (CHUNK // 2, N_FEATURES), "shards": (CHUNK, N_FEATURES)}}
    return written(path, encoding=encoding)


def in_zarr_2(path):
    return written(path, zarr_format=2)


def uncompressed(path):
    return written(path, encoding={"embeddings": {"compressors": None}})


def uncompressed_in_zarr_2(path):
    return written(path, zarr_format=2, encoding={"embeddings": {"compressors": None}})


def blosc_in_shards(path):
    encoding = {"chunks": (CHUNK // 2, N_FEATURES), "shards": (CHUNK, N_FEATURES), "compressors": [BloscCodec()]}
    return written(path, encoding={"embeddings": encoding})


def blosc(path):
    return written(path, encoding={"embeddings": {"compressors": [BloscCodec()]}})


def bare(path):
    zarr.create_array(path, data=example(), chunks=(CHUNK, N_FEATURES))
    return path


def third_chunk(path):
    """The file of rows 40 to 59."""
    names = ["embeddings/c/2/0", "embeddings/2.0", "c/2/0"]
    return next(path / name for name in names if (path / name).exists())


STORES = [written, sharded, in_zarr_2, bare, blosc, blosc_in_shards, uncompressed, uncompressed_in_zarr_2]


# --- what may pass is tried again -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError("503 Slow Down"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), False),
        (OSError(errno.EROFS, "Read-only file system"), False),
        (ValueError(), False),
        (MemoryError(), False),
        (KeyboardInterrupt(), False),
        (
            type("ServerDisconnectedError", (type("ClientError", (Exception,), {"__module__": "aiohttp.x"}),), {})(),
            True,
        ),
        (type("ClientError", (Exception,), {"__module__": "elsewhere"})(), False),
        (type("HttpError", (Exception,), {"__module__": "gcsfs.retry", "code": 503})(), True),
        (type("HttpError", (Exception,), {"__module__": "gcsfs.retry", "code": 429})(), True),
        (type("HttpError", (Exception,), {"__module__": "gcsfs.retry", "code": 403})(), False),
    ],
    ids=lambda value: f"{type(value).__name__}{getattr(value, 'args', '')}",
)
def test_what_may_pass_is_tried_again_and_nothing_else(error, passes):
    assert may_pass(error) is passes
    calls = []

    def call():
        calls.append(1)
        raise error

    with pytest.raises(type(error)) as raised:
        retrying(call, "testing")
    assert raised.value is error
    assert len(calls) == (ATTEMPTS if passes else 1)


def test_pauses_double_and_take_a_few_seconds_in_all(monkeypatch):
    monkeypatch.undo()
    pauses = []
    monkeypatch.setattr(retry, "sleep", pauses.append)
    with pytest.raises(TimeoutError):
        retrying(raise_timeout, "testing")
    expected = 0.05 * 2.0 ** np.arange(ATTEMPTS - 1)
    assert np.all((pauses >= expected / 2) & (pauses <= expected * 1.5))
    assert 3 < expected.sum() < 10


def raise_timeout():
    raise TimeoutError


# --- object stores ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", STORES)
def test_embeddings_are_opened_by_url_lazily(write, tmp_path, fail):
    write(tmp_path / "rows.zarr")
    with dask.config.set(scheduler=refuse_to_compute):
        Y = open_embeddings(f"bucket://{tmp_path}/rows.zarr")
    assert set(Y.chunks[0]) <= {CHUNK, CHUNK // 2}
    assert Y.encoding["source"] == f"bucket://{tmp_path}/rows.zarr"
    np.testing.assert_array_equal(Y.values, example())


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("something was computed")


def test_memory_and_file_urls_are_opened():
    with fsspec.open("memory://rows.zarr/zarr.json", "wb") as stream:
        stream.write(b"")  # overwritten
    written("memory://rows.zarr", mode="w")
    np.testing.assert_array_equal(open_embeddings("memory://rows.zarr").values, example())


def test_a_file_url_is_the_local_folder(tmp_path):
    written(tmp_path / "rows.zarr")
    Y = open_embeddings(f"file://{tmp_path}/rows.zarr")
    np.testing.assert_array_equal(Y.values, example())
    assert Y.encoding["source"] == str(tmp_path / "rows.zarr")


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("bucket:///nowhere/rows.zarr", FileNotFoundError, "nothing at bucket:///nowhere/rows.zarr"),
        ("bucket:///nowhere/rows.npy", ValueError, r"remote \.npy file.*write it as a zarr store"),
        ("unheard-of://rows.zarr", ValueError, "unheard-of://rows.zarr cannot be opened: Protocol not known"),
        ("needy://rows.zarr", ImportError, "needy://rows.zarr cannot be opened: install needyfs.*on the workers"),
    ],
)
def test_urls_that_cannot_be_opened_are_named(url, error, message, monkeypatch):
    monkeypatch.setitem(known_implementations, "needy", {"class": "needyfs.Fs", "err": "install needyfs"})
    with pytest.raises(error, match=message):
        open_embeddings(url)


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (PermissionError("Forbidden"), PermissionError, r"may not be read.*Forbidden.*credentials"),
        (type("NoCredentialsError", (Exception,), {})("none"), PermissionError, "may not be read.*none.*credentials"),
        (ConnectionRefusedError("no route"), ConnectionError, f"cannot be reached, tried {ATTEMPTS} times.*no route"),
    ],
    ids=["forbidden", "credentials", "down"],
)
@pytest.mark.parametrize("open_it", [open_embeddings, open_codes, open_dictionary])
def test_an_object_store_that_cannot_be_used_is_named(open_it, failure, error, message, tmp_path, fail):
    def fault(doing, path):
        raise failure

    written(tmp_path / "rows.zarr")
    fail(fault)
    with pytest.raises(error, match=f"bucket://{tmp_path}/rows.zarr.*{message}"):
        open_it(f"bucket://{tmp_path}/rows.zarr")


@pytest.mark.parametrize("write", [written, sharded])
def test_a_fit_from_a_flaky_object_store_gives_the_same_bits(write, tmp_path, fail):
    expected = model().fit(da.from_array(example(), chunks=(CHUNK, -1)))
    write(tmp_path / "rows.zarr")
    fail(fault := flaky(0.3))
    fitted = model().fit(open_embeddings(f"bucket://{tmp_path}/rows.zarr"))
    assert any("/c/" in path for path in fault.failed)
    np.testing.assert_array_equal(fitted.components_, expected.components_)


def test_codes_are_read_from_a_flaky_object_store(tmp_path, fail):
    codes = SparseCodes(np.ones((60, 2), "int32"), np.ones((60, 2), "float32"), N_ATOMS)
    codes.to_zarr(tmp_path / "codes.zarr")
    fail(fault := flaky(0.5))
    opened = open_codes(f"bucket://{tmp_path}/codes.zarr")
    np.testing.assert_array_equal(opened.compute().indices, codes.indices)
    assert fault.failed


def test_a_slow_object_store_is_waited_for(tmp_path, fail):
    written(tmp_path / "rows.zarr")
    fail(lambda doing, path: time.sleep(0.02))
    np.testing.assert_array_equal(open_embeddings(f"bucket://{tmp_path}/rows.zarr").values, example())


# --- stores that are published to any place ---------------------------------------------------------------------------


def published(target, number=1.0):
    publish_store(xr.Dataset({"x": ("i", np.full(5, number)), "y": 3.0}), target, "example")


@pytest.fixture(params=["local", "bucket"])
def place(request, tmp_path):
    return tmp_path / "run" if request.param == "local" else f"bucket://{tmp_path}/run"


def test_a_published_store_opens_and_lists_and_goes(place):
    assert child_names(place) == []
    for name in ("first", "second"):
        published(f"{place}/{name}", len(name))
    assert child_names(place) == ["first", "second"]
    assert open_store(f"{place}/second", "example", ["x"]).x.values.tolist() == [6.0] * 5
    remove_store(f"{place}/first")
    remove_store(f"{place}/first")
    assert child_names(place) == ["second"]


def test_what_is_published_is_not_replaced(place):
    published(f"{place}/store")
    with pytest.raises(FileExistsError, match="run/store exists"):
        published(f"{place}/store", 2.0)
    assert open_store(f"{place}/store", "example", ["x"]).x.values.tolist() == [1.0] * 5


def test_a_publication_that_dies_after_any_object_does_not_open_and_the_next_one_replaces_it(tmp_path, fail):
    """As a killed process leaves it: nothing cleans up."""
    place = f"bucket://{tmp_path}/store"
    for n_objects in range(100):
        left = iter(range(n_objects))

        def fault(doing, path, left=left):
            if doing == "delete" or (doing == "put" and next(left, None) is None):
                raise SystemExit

        fail(fault)
        try:
            published(place)
        except SystemExit:
            fail(lambda doing, path: None)
            with pytest.raises((FileNotFoundError, ValueError)):
                open_store(place, "example", ["x"])
        else:
            break
    assert n_objects > 4
    fail(lambda doing, path: None)
    assert open_store(place, "example", ["x"]).x.values.tolist() == [1.0] * 5


@pytest.mark.parametrize("failure", [PermissionError("no"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_publication_that_fails_leaves_nothing(failure, tmp_path, fail):
    def fault(doing, path):
        if doing == "put" and path.endswith("store/zarr.json"):
            raise failure

    fail(fault)
    with pytest.raises(type(failure)):
        published(f"bucket://{tmp_path}/store")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_publication_to_a_flaky_object_store_succeeds(tmp_path, fail):
    fail(fault := flaky(0.5))
    published(f"bucket://{tmp_path}/store")
    assert open_store(f"bucket://{tmp_path}/store", "example", ["x"]).x.values.tolist() == [1.0] * 5
    remove_store(f"bucket://{tmp_path}/store")
    assert fault.failed
    assert child_names(f"bucket://{tmp_path}") == []


# --- embeddings that fail while they are used -------------------------------------------------------------------------


def delete(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def scribble(path):
    content = bytearray(path.read_bytes())
    content[: len(content) // 2] = b"\xa5" * (len(content) // 2)
    path.write_bytes(content)


def replace_by_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGED = [
    (remote, write, damage)
    for remote, stores in ((False, STORES), (True, [written, sharded]))
    for write in stores
    for damage in (delete, cut, empty, scribble, replace_by_a_folder)
    # Without a checksum or a compression nobody can tell.
    if not (damage is scribble and write in (uncompressed, uncompressed_in_zarr_2))
]


@pytest.mark.parametrize(("remote", "write", "damage"), DAMAGED)
def test_a_chunk_that_is_damaged_after_the_store_was_opened_is_named(remote, write, damage, tmp_path):
    write(tmp_path / "rows.zarr")
    Y = open_embeddings(f"bucket://{tmp_path}/rows.zarr" if remote else tmp_path / "rows.zarr")
    damage(third_chunk(tmp_path / "rows.zarr"))
    np.testing.assert_array_equal(Y[:40].values, example()[:40])
    np.testing.assert_array_equal(Y[60:].values, example()[60:])
    with pytest.raises(
        ValueError, match=r"rows\.zarr.*: rows (4|5)0 to (4|5)9 cannot be read \(.+\): is the store damag"
    ):
        Y.compute()


def test_a_checksum_tells_of_a_flipped_bit(tmp_path):
    store = written(tmp_path / "rows.zarr", encoding={"embeddings": {"compressors": [Crc32cCodec()]}})
    content = bytearray(third_chunk(store).read_bytes())
    content[17] ^= 4
    third_chunk(store).write_bytes(content)
    with pytest.raises(ValueError, match=r"rows 40 to 59 cannot be read \(.*checksum.*\): is the store damaged"):
        open_embeddings(store).compute()


def test_zarr_itself_would_read_a_missing_chunk_as_zeros(tmp_path):
    """Else the tests above and below could not fail."""
    array = zarr.open(bare(tmp_path / "rows.zarr"), mode="r")
    third_chunk(tmp_path / "rows.zarr").unlink()
    np.testing.assert_array_equal(array[40:60], 0)


def test_a_coordinate_that_loses_a_chunk_is_named(tmp_path):
    Y = open_embeddings(written(tmp_path / "rows.zarr"))
    (tmp_path / "rows.zarr" / "document" / "c" / "1").unlink()
    assert Y.document[:80].values.tolist() == (np.arange(80) // 10 + 1).tolist()
    with pytest.raises(ValueError, match=r"rows\.zarr \('document'\): rows 80 to 159 cannot be read"):
        Y.document.compute()


def test_a_coordinate_whose_zeros_were_left_out_is_read_as_it_was_written(tmp_path):
    """xarray leaves out chunks that hold nothing but the fill value."""
    document = np.arange(N_SAMPLES) // CHUNK
    rows = xr.Dataset({"rows": (("sample", "feature"), example())}, {"document": ("sample", document)})
    rows.chunk(sample=CHUNK).to_zarr(tmp_path / "rows.zarr", consolidated=False)
    assert not (tmp_path / "rows.zarr" / "document" / "c" / "0").exists()
    assert open_embeddings(tmp_path / "rows.zarr").document.values.tolist() == document.tolist()


@pytest.mark.parametrize("array", ["indices", "values", "document", "word"])
@pytest.mark.parametrize("damage", [delete, cut])
def test_codes_that_lose_a_chunk_are_named(damage, array, tmp_path):
    coords = {
        "document": xr.DataArray(np.zeros(60, int), dims="sample"),
        "word": xr.DataArray(np.array(["a", "", "bc"] * 20), dims="sample"),
    }
    ones = da.ones((60, 2), chunks=(20, 2))
    SparseCodes(ones.astype("int32"), ones, N_ATOMS, coords).to_zarr(tmp_path / "codes.zarr")
    codes = open_codes(tmp_path / "codes.zarr")
    chunk = sorted(path for path in (tmp_path / "codes.zarr" / array / "c").rglob("*") if path.is_file())[1]
    damage(chunk)
    with pytest.raises(ValueError, match=rf"codes\.zarr \('{array}'\): rows 20 to 39 cannot be read"):
        codes.compute()


def test_any_flipped_bit_of_a_dictionary_is_named_or_does_not_matter(tmp_path):
    """The stores of this package have checksums."""
    dictionary = Dictionary(np.eye(4, 6), 2)
    dictionary.to_zarr(tmp_path / "dictionary.zarr")
    chunk = tmp_path / "dictionary.zarr" / "atoms" / "c" / "0" / "0"
    content = chunk.read_bytes()
    named = 0
    for bit in Random(0).sample(range(8 * len(content)), 60):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        chunk.write_bytes(flipped)
        try:
            np.testing.assert_array_equal(open_dictionary(tmp_path / "dictionary.zarr").atoms, dictionary.atoms)
        except ValueError as error:
            assert "cannot be read" in str(error)  # noqa: PT017
            named += 1
    assert named > 50


def npy(folder):
    np.save(folder / "rows.npy", example())
    return folder / "rows.npy"


def fortran_npy(folder):
    np.save(folder / "rows.npy", np.asfortranarray(example()))
    return folder / "rows.npy"


@pytest.mark.parametrize("write", [npy, fortran_npy])
@pytest.mark.parametrize("damage", [delete, cut, empty])
def test_a_file_that_is_cut_off_or_deleted_after_it_was_opened_is_named(write, damage, tmp_path, monkeypatch):
    """Mapped, it would be the end of the process."""
    monkeypatch.setattr(chunking, "CHUNK_BYTES", CHUNK * N_FEATURES * 4)
    Y = open_embeddings(write(tmp_path))
    damage(tmp_path / "rows.npy")
    with pytest.raises(ValueError, match=r"rows\.npy: rows 1?\d+ to 1?\d+ cannot be read \(.+\): is the store damaged"):
        Y[-CHUNK // 2 :].compute()


def test_rows_in_use_do_not_change_with_their_file(tmp_path):
    Y = open_embeddings(npy(tmp_path)).data.persist()
    empty(tmp_path / "rows.npy")
    np.testing.assert_array_equal(Y.compute(), example())


@pytest.mark.parametrize("write", [npy, fortran_npy])
@pytest.mark.parametrize(
    "rows", [slice(30, 70), slice(None, None, -3), slice(50, 50), [5, 3, 150], -1, np.arange(160) % 7 == 0]
)
def test_any_selection_of_rows_is_read_from_a_file(write, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", CHUNK * N_FEATURES * 4)
    Y = open_embeddings(write(tmp_path))
    np.testing.assert_array_equal(Y[rows].values, example()[rows])
    np.testing.assert_array_equal(Y[rows, ::2].values, example()[rows, ::2])


# --- fits whose data fail ---------------------------------------------------------------------------------------------


class Once:
    """A callback that does something after the second iteration."""

    def __init__(self, happen):
        self.happen = happen

    def __call__(self, model, iteration):
        if iteration.iteration == 1:
            self.happen()


def lose_a_chunk(store):
    third_chunk(store).rename(store.parent / "chunk")


def find_the_chunk(store):
    (store.parent / "chunk").rename(store / "embeddings" / "c" / "2" / "0")


def unmount(store):
    store.rename(store.parent / "elsewhere")


def mount(store):
    (store.parent / "elsewhere").rename(store)


def unmount_leaving_the_folder(store):
    unmount(store)
    store.mkdir()


def mount_over_the_folder(store):
    store.rmdir()
    mount(store)


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
@pytest.mark.parametrize(
    ("happen", "mend"),
    [(lose_a_chunk, find_the_chunk), (unmount, mount), (unmount_leaving_the_folder, mount_over_the_folder)],
)
def test_a_fit_keeps_what_it_learned_when_its_data_fail_and_works_when_they_are_back(happen, mend, remote, tmp_path):
    store = written(tmp_path / "rows.zarr")
    source = f"bucket://{store}" if remote else store
    expected = model().fit(open_embeddings(source))

    failing = model(callbacks=[Once(lambda: happen(store))])
    with pytest.raises(ValueError, match=r"rows\.zarr \('embeddings'\): rows \d+ to \d+ cannot be read .*gone"):
        failing.fit(open_embeddings(source))
    assert failing.n_iter_ >= 2
    np.testing.assert_array_equal(
        failing.components_, model(max_iter=failing.n_iter_).fit(example_in_chunks()).components_
    )

    mend(store)
    np.testing.assert_array_equal(
        failing.set_params(callbacks=()).fit(open_embeddings(source)).components_, expected.components_
    )


def example_in_chunks():
    return da.from_array(example(), chunks=(CHUNK, -1))


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (PermissionError("Forbidden"), "Forbidden.*may not read them.*credentials"),
        (ConnectionRefusedError("no route"), f"no route.*tried {ATTEMPTS} times"),
    ],
    ids=["forbidden", "down"],
)
def test_a_fit_whose_object_store_goes_away_says_so(failure, message, tmp_path, fail):
    def go_away():
        def fault(doing, path):
            raise failure

        fail(fault)

    store = written(tmp_path / "rows.zarr")
    failing = model(callbacks=[Once(go_away)])
    with pytest.raises(ValueError, match=rf"bucket://.*rows \d+ to \d+ cannot be read \({message}"):
        failing.fit(f"bucket://{store}")
    assert failing.n_iter_ >= 2


def test_codes_of_embeddings_that_fail_are_not_written(tmp_path):
    store = written(tmp_path / "rows.zarr")
    codes = Dictionary(np.eye(N_FEATURES), K).encode(open_embeddings(store))
    third_chunk(store).unlink()
    with pytest.raises(ValueError, match="rows 40 to 59 cannot be read"):
        codes.to_zarr(tmp_path / "codes.zarr")
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.zarr"]


# --- on worker processes: last, as their client is what everything runs on from here ----------------------------------


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_workers_read_straight_from_the_object_store(client, tmp_path, fail):
    written(tmp_path / "rows.zarr")
    embeddings = open_embeddings(f"bucket://{tmp_path}/rows.zarr")
    fail(lambda doing, path: pytest.fail("the client read a chunk"))
    np.testing.assert_array_equal(embeddings.values, example())


def test_a_fit_on_workers_whose_data_fail_keeps_what_it_learned(client, tmp_path):
    store = written(tmp_path / "rows.zarr")
    failing = model(callbacks=[Once(lambda: unmount(store))])
    with pytest.raises(ValueError, match=r"rows\.zarr \('embeddings'\): rows \d+ to \d+ cannot be read .*gone"):
        failing.fit(store)
    assert failing.n_iter_ >= 2
