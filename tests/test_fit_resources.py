"""What a fit takes and gives back: threads, BLAS threads, and memory for the batches that it reads ahead."""

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import dask
import dask.array as da
import numpy as np
import pytest
from small_fits import BATCH, INTERRUPTS, N_BATCHES, Noting, example, in_chunks, model
from threadpoolctl import threadpool_info, threadpool_limits


@pytest.mark.parametrize("ended", [*INTERRUPTS, lambda fit: fit(model(), example())])
def test_no_thread_is_left_behind(ended):
    with dask.config.set(num_workers=1):
        model().fit(example())  # starts the threads of Dask's pool, which stay
        before = set(threading.enumerate())
        ended(lambda model, Y: model.fit(Y))
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert not [name for name in left if "read-ahead" in name], left


# --- BLAS threads ----------------------------------------------------------------------------------------------------


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture(params=["here", "elsewhere"])
def two_blas_threads(request):
    """Set by the thread that fits or by one that has ended: threadpoolctl heeds one thread, as long as that lives."""
    if request.param == "here":
        with threadpool_limits(2, user_api="blas"):
            yield
        return
    with ThreadPoolExecutor(1) as other:
        limits = other.submit(threadpool_limits, 2, user_api="blas").result()
    yield
    with ThreadPoolExecutor(1) as other:
        other.submit(limits.restore_original_limits).result()


def fail_in_a_callback(fit):
    def fail(model, iteration):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fit(model(callbacks=[fail]), example())


@pytest.mark.usefixtures("two_blas_threads")
@pytest.mark.parametrize("ended", [lambda fit: fit(model(), example()), fail_in_a_callback, *INTERRUPTS])
def test_blas_has_its_threads_back_after_a_fit(ended):
    assert blas_threads() == {2}
    ended(lambda model, Y: model.fit(Y))
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_blas_threads")
@pytest.mark.parametrize("num_workers", [1, 4])
def test_blas_has_its_threads_back_after_transform_score_and_encode(num_workers):
    Y = np.tile(example(), (500, 1))
    with dask.config.set(num_workers=num_workers):
        fitted = model(init="random", max_iter=1).fit(example())
        fitted.transform(Y)
        fitted.score(Y)
        fitted.dictionary_.encode(da.from_array(Y, chunks=(8192, -1))).compute()
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_has_one_thread_during_a_fit():
    during = []
    model(callbacks=[lambda model, iteration: during.append(blas_threads())]).fit(example())
    assert during == [{1}] * 6


# --- reading ahead ---------------------------------------------------------------------------------------------------


def test_the_next_batch_is_being_read_while_an_iteration_is_computed():
    """Every computation of an iteration waits here until the reading of the next batch has begun."""
    main = threading.current_thread()
    reading = [threading.Event() for _ in range(N_BATCHES)]
    ahead = []

    def get(graph, keys, **options):
        upcoming = fitting.n_iter_ + 1
        if threading.current_thread() is main and begun and upcoming < N_BATCHES:
            ahead.append(reading[upcoming].wait(timeout=20))
        return dask.get(graph, keys, **options)

    begun = []
    fitting = model(max_iter=N_BATCHES, init="random", callbacks=[Noting(begun)])
    with dask.config.set(scheduler=get):
        fitting.fit(in_chunks(example(), lambda chunk: reading[chunk].set()))
    assert len(ahead) >= N_BATCHES - 1
    assert all(ahead)


def test_reading_ahead_goes_no_further_than_the_next_batch_and_not_beyond_the_last():
    read = []
    at_most = []

    def look(model, iteration):
        time.sleep(0.05)
        at_most.append(max(read) <= iteration.iteration + 1)

    model(max_iter=3, init="random", callbacks=[look]).fit(in_chunks(example(), read.append))
    assert all(at_most)
    assert sorted(read) == [0, 1, 2]


def test_a_batch_that_was_read_ahead_but_is_not_needed_may_be_broken():
    Y = example()
    Y[2 * BATCH :] = np.nan
    stopped = model(init="random", callbacks=[lambda model, iteration: iteration.iteration == 1])
    stopped.fit(da.from_array(Y, chunks=(BATCH, -1)))
    assert (stopped.n_iter_, stopped.stopped_by_) == (2, "<lambda>")


class Alive:
    """Counts the arrays that are alive, and the most that were at once."""

    def __init__(self):
        self.made = self.alive = self.most = 0
        self._lock = threading.RLock()  # reentrant: a garbage collection may free an array while another is counted

    def track(self, block):
        block = block.copy()
        with self._lock:
            self.made += 1
            self.alive += 1
            self.most = max(self.most, self.alive)
        weakref.finalize(block, self._free)
        return block

    def _free(self):
        with self._lock:
            self.alive -= 1


N_CHUNKS = 40


@pytest.mark.parametrize(
    "use",
    [
        lambda m, Y, tracked: m.fit(tracked),
        lambda m, Y, tracked: m.fit(tracked, validation=Y[:BATCH]),
        lambda m, Y, tracked: m.set_params(shuffle="chunks").fit(tracked),
        lambda m, Y, tracked: m.set_params(center=True).fit(tracked),
        lambda m, Y, tracked: m.partial_fit(tracked),
        lambda m, Y, tracked: m.set_params(max_iter=1).fit(Y).score(tracked),
        lambda m, Y, tracked: m.set_params(max_iter=1).fit(Y).transform(tracked).to_csr(),
    ],
    ids=["fit", "validated", "shuffled", "centred", "partial_fit", "score", "transform"],
)
@pytest.mark.parametrize("num_workers", [1, 4])
def test_only_a_few_chunks_of_the_embeddings_are_in_memory_at_once(use, num_workers, monkeypatch):
    """Also while one worker makes the Gram matrix, and the others have nothing to do but read."""
    monkeypatch.setattr("dbksvd_dask.batches.ROWS_PER_TASK", BATCH)
    chunks = Alive()
    Y = da.from_array(np.tile(example(), (N_CHUNKS // N_BATCHES, 1)), chunks=(BATCH, -1))
    tracked = Y.map_blocks(chunks.track, meta=np.empty((0, 0), Y.dtype))
    with dask.config.set(scheduler="threads", num_workers=num_workers):
        use(model(max_iter=N_CHUNKS, init="random").set_params(n_components=1024), Y, tracked)
    assert chunks.made >= N_CHUNKS
    assert chunks.most <= N_CHUNKS // 3
