"""The same seed and the same chunks give the same bits, whatever computes them and however the data comes in."""

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

from dbksvd_dask import DBKSVD
from dbksvd_dask.batches import OuterBatches
from dbksvd_dask.embeddings import chunking, open_embeddings

N_SAMPLES, N_FEATURES, N_ATOMS, CHUNK = 6000, 48, 96, 2000
FITS = {
    "all atoms at once": {},
    "inner batches": {"inner_batch_size": 24},
    "shuffled": {"shuffle": "chunks", "encoder": "omp", "center": True},
}
SOURCES = {"all atoms at once": ["numpy", "dask", "npy"], "inner batches": ["dask"], "shuffled": ["npy"]}


@pytest.fixture(scope="module", autouse=True)
def same_chunks():
    """NumPy arrays and files come in the chunks of the dask array."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "_rows_per_chunk", lambda shape, dtype: CHUNK)
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    Y = np.random.default_rng(0).standard_normal((N_SAMPLES, N_FEATURES)).astype(np.float32)
    path = tmp_path_factory.mktemp("embeddings") / "Y.npy"
    np.save(path, Y)
    return {"numpy": Y, "dask": da.from_array(Y, chunks=(CHUNK, N_FEATURES)), "npy": path}


def fitted(source, options):
    model = DBKSVD(N_ATOMS, 4, batch_size=3000, max_iter=3, random_state=0, **options).fit(source)
    return model.components_, model.history_["train_relative_error"].values


@pytest.fixture(scope="module")
def expected(sources):
    with dask.config.set(scheduler="synchronous"):
        return {name: fitted(sources["dask"], options) for name, options in FITS.items()}


def assert_same_bits(expected, sources):
    for name, options in FITS.items():
        for source in SOURCES[name]:
            for ours, theirs in zip(fitted(sources[source], options), expected[name], strict=True):
                np.testing.assert_array_equal(ours, theirs, err_msg=f"{name}, from {source}")


def test_the_batches_of_this_test_have_several_tasks_over_several_chunks(sources):
    for source in sources.values():
        embeddings = open_embeddings(source).data
        assert embeddings.chunks[0] == (CHUNK,) * 3
        tasks = dask.compute(*OuterBatches(embeddings, 3000, None, seed=0).read(0))
        assert [[len(piece) for piece in pieces] for pieces in tasks] == [[1500], [500, 1000]]


def test_again_in_one_thread(expected, sources):
    with dask.config.set(scheduler="synchronous"):
        assert_same_bits(expected, sources)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_in_threads(expected, sources, n_threads):
    with dask.config.set(scheduler="threads", num_workers=n_threads):
        assert_same_bits(expected, sources)


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_in_worker_processes(expected, sources, client, n_workers):
    client.cluster.scale(n_workers)
    client.wait_for_workers(n_workers, timeout=120)
    assert len({worker["id"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()}) == n_workers
    assert_same_bits(expected, sources)


@pytest.mark.usefixtures("client")
def test_what_a_cluster_has_learned_goes_on_with_the_same_bits_without_it(sources):
    model = DBKSVD(N_ATOMS, 4, batch_size=3000, max_iter=3, random_state=0).fit(sources["npy"])
    assert model.components_.flags.aligned
    with dask.config.set(scheduler="threads"):
        alone = DBKSVD(N_ATOMS, 4, batch_size=3000, max_iter=3, random_state=0).fit(sources["npy"])
        assert model.score(sources["npy"]) == alone.score(sources["npy"])
        for fit in (model, alone):
            fit.partial_fit(sources["npy"])
    np.testing.assert_array_equal(model.components_, alone.components_)
