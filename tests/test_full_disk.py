"""Disks that are full, and stores that are given up while they are written: nothing is left of them."""

import errno
import shutil
import subprocess
import sys
import time

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from zarr.storage import LocalStore

from dbksvd_dask import Dictionary, SparseCodes, open_codes, open_dictionary
from dbksvd_dask.draft import ROOT, Draft, write_zarr
from dbksvd_dask.store import publish_store


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def noise(n_rows, n_columns, chunk=1000):
    return da.random.default_rng(0).random((n_rows, n_columns), chunks=(chunk, n_columns))


def too_many_codes():
    values = noise(100_000, 8)
    return SparseCodes((values * 100).astype("int32"), values, 100)


def too_large_a_dictionary():
    atoms = noise(1000, 500).compute()
    return Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True), 2)


def few_codes():
    return SparseCodes(np.ones((4, 2), "int32"), np.ones((4, 2)), 100)


def small_dictionary():
    return Dictionary(np.eye(3), 2)


@pytest.mark.parametrize(
    ("make", "make_small", "open_it"),
    [(too_many_codes, few_codes, open_codes), (too_large_a_dictionary, small_dictionary, open_dictionary)],
    ids=["codes", "dictionary"],
)
@pytest.mark.parametrize("there_before", [False, True])
def test_a_full_disk_is_named_and_left_as_it_was(make, make_small, open_it, there_before, small_disk):
    path = small_disk / "store.zarr"
    if there_before:
        make_small().to_zarr(path)
    before = {entry: entry.read_bytes() for entry in small_disk.rglob("*") if entry.is_file()}
    with pytest.raises(
        OSError, match=r"store\.zarr cannot be written \(No space left on device\).*make room"
    ) as raised:
        make().to_zarr(path, overwrite=there_before)
    assert raised.value.errno == errno.ENOSPC
    assert {entry: entry.read_bytes() for entry in small_disk.rglob("*") if entry.is_file()} == before
    assert [entry.name for entry in small_disk.iterdir()] == ["store.zarr"] * there_before
    make_small().to_zarr(path, overwrite=there_before)  # there is room again
    open_it(path)


def test_a_publication_to_a_full_disk_leaves_nothing(small_disk):
    dataset = xr.Dataset({"x": ("i", noise(1_000, 500).compute().ravel())})
    with pytest.raises(OSError, match=r"store cannot be written \(No space left on device\)"):
        publish_store(dataset, small_disk / "store", "example")
    assert list(small_disk.iterdir()) == []


WRITES_MORE_THAN_IT_MAY = """
import resource, sys
import dask, numpy as np
from dbksvd_dask import Dictionary

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
atoms = np.random.default_rng(0).standard_normal((500, 500))
with dask.config.set(scheduler="threads"):
    try:
        Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True), 2).to_zarr(sys.argv[1])
    except OSError as error:
        print(error)
"""


def test_a_limit_on_the_size_of_files_is_named(tmp_path):
    path = tmp_path / "dictionary.zarr"
    done = subprocess.run(
        [sys.executable, "-c", WRITES_MORE_THAN_IT_MAY, path], capture_output=True, text=True, check=True
    )
    assert f"{path} cannot be written (File too large)" in done.stdout
    assert list(tmp_path.iterdir()) == []


class GivenUpMeanwhile(LocalStore):
    """Removed between the moment when a task has looked whether it is there and when the task writes."""

    async def set(self, key, value):
        if not key.endswith(ROOT):
            shutil.rmtree(self.root, ignore_errors=True)
        await super().set(key, value)


def test_what_a_task_writes_into_a_store_that_was_given_up_does_not_bring_it_back(tmp_path):
    dataset = xr.Dataset({"x": ("i", da.ones(4, chunks=2))})
    with pytest.raises(FileNotFoundError, match=r"the writing of x\.zarr was given up"):
        write_zarr(dataset, Draft(GivenUpMeanwhile(tmp_path / "x.zarr"), "x.zarr"))
    assert list(tmp_path.iterdir()) == []


# On worker processes: last, as their client is what everything runs on from here.


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_a_disk_that_is_full_on_the_workers_is_left_as_it_was(client, small_disk):
    with pytest.raises(OSError, match=r"store\.zarr cannot be written \(No space left on device\)"):
        too_many_codes().to_zarr(small_disk / "store.zarr")
    # Tasks that were running then end in their own time, and leave nothing either.
    deadline = time.monotonic() + 60
    while any(client.processing().values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    assert list(small_disk.iterdir()) == []
