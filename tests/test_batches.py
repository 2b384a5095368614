"""Outer batches walk through the rows, each once an epoch, whatever the chunks; a bad row is named where it stands."""

from collections import Counter
from itertools import pairwise

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbksvd_dask import DBKSVD, Dictionary, open_embeddings
from dbksvd_dask.batches import ROWS_PER_DEVICE_TASK, ROWS_PER_TASK, OuterBatches, read_in_order
from dbksvd_dask.graph import delayed_of

CHUNKS = st.lists(st.integers(1, 40) | st.sampled_from([1024, 5000]), min_size=1, max_size=6).map(tuple)


@pytest.fixture(autouse=True)
def one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def numbered(chunks):
    """Each row holds its own number."""
    return da.from_array(np.arange(sum(chunks), dtype=np.float64)[:, np.newaxis], chunks=(chunks, 1))


def rows_of(tasks):
    """The numbers of the rows, task by task."""
    return [np.concatenate(pieces).ravel() for pieces in dask.compute(*tasks)]


def epoch(batches, number=0):
    """The numbers of the rows, batch by batch."""
    first = batches.first_iteration + number * batches.n_batches
    return [np.concatenate(rows_of(batches.read(first + i))) for i in range(batches.n_batches)]


@settings(deadline=None, max_examples=50)
@given(chunks=CHUNKS, batch_size=st.integers(1, 100) | st.integers(1000, 20_000), seed=st.integers(0, 5))
@pytest.mark.parametrize("shuffle", [None, "chunks"])
def test_every_row_comes_once_an_epoch_in_batches_of_even_size(shuffle, chunks, batch_size, seed):
    n_samples = sum(chunks)
    batch_size = max(batch_size, n_samples // 20)
    batches = OuterBatches(numbered(chunks), batch_size, shuffle, seed, first_iteration=seed)
    assert batches.n_batches == -(-n_samples // batch_size)
    for number in (0, 1):
        found = epoch(batches, number)
        sizes = [len(rows) for rows in found]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        assert sizes == [batches.size(seed + number * batches.n_batches + i) for i in range(batches.n_batches)]
        walk = np.concatenate(found)
        if shuffle is None:
            np.testing.assert_array_equal(walk, np.arange(n_samples))
        else:
            np.testing.assert_array_equal(np.sort(walk), np.arange(n_samples))
            chunk_of = np.repeat(np.arange(len(chunks)), chunks)[walk.astype(int)]
            assert len(chunks) == 1 + sum(a != b for a, b in pairwise(chunk_of))  # rows of a chunk stay together


def test_chunks_and_rows_within_them_are_permuted_by_seed_and_epoch():
    def orders(seed, number):
        """The order of the chunks, and that of the rows of the first one."""
        batches = OuterBatches(numbered((20,) * 10), 70, "chunks", seed)
        chunks, rows = np.divmod(np.concatenate(epoch(batches, number)).astype(int), 20)
        return tuple(chunks[::20]), tuple(rows[chunks == 0])

    assert orders(0, 0) == orders(0, 0)
    assert orders(1, 3) == orders(1, 3)
    different = [orders(seed, number) for seed in (0, 1) for number in (0, 1, 2)]
    different.append((tuple(range(10)), tuple(range(20))))
    assert all(len(set(found)) == 7 for found in zip(*different, strict=True))


@pytest.mark.parametrize("n_samples", [1, 1023, 2048, 8192, 8193, 70_000])
def test_tasks_are_neither_too_large_nor_needlessly_few(n_samples):
    batches = OuterBatches(numbered((n_samples,)), n_samples, None, seed=0)
    sizes = [len(rows) for rows in rows_of(batches.read(0))]
    assert sum(sizes) == n_samples
    assert max(sizes) <= ROWS_PER_TASK
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) >= min(8, n_samples // 1024)


@pytest.mark.parametrize(("n_samples", "n_tasks"), [(1, 1), (8192, 1), (32_768, 1), (32_769, 2), (70_000, 3)])
def test_tasks_on_a_device_are_as_few_as_may_be(cupy, n_samples, n_tasks):
    assert ROWS_PER_DEVICE_TASK == 32_768
    there = numbered((n_samples,)).map_blocks(cupy.asarray, meta=cupy.empty((0, 0)))
    assert len(OuterBatches(there, n_samples, None, seed=0).read(0)) == n_tasks


def test_reading_in_order_takes_as_many_rows_at_a_time_as_a_task_of_the_device(cupy):
    there = numbered((16_384,) * 5).map_blocks(cupy.asarray, meta=cupy.empty((0, 0)))
    assert [n_rows for n_rows, _ in read_in_order(there)] == [32_768, 32_768, 16_384]


@settings(deadline=None, max_examples=30)
@given(chunks=CHUNKS)
def test_reading_in_order_gives_all_rows_in_tasks_of_whole_chunks(chunks):
    counted = read_in_order(numbered(chunks))
    found = rows_of(delayed_of(*(call for _, call in counted)))
    assert [n_rows for n_rows, _ in counted] == [len(rows) for rows in found]
    ends = np.cumsum(chunks)
    assert set(np.cumsum([len(rows) for rows in found])) <= set(ends)
    for rows, following in pairwise(found):
        next_chunk = chunks[np.searchsorted(ends, following[0], side="right")]
        assert len(rows) + next_chunk > ROWS_PER_TASK
    np.testing.assert_array_equal(np.concatenate(found), np.arange(sum(chunks)))


def test_nothing_is_read_before_a_batch_is_computed_and_then_each_chunk_once():
    reads = Counter()

    def load(block, block_id):
        reads[block_id[0]] += 1
        return block

    embeddings = numbered((3000, 3000, 3000)).map_blocks(load, dtype=np.float64, meta=np.empty((0, 0)))
    batches = OuterBatches(embeddings, 4500, None, seed=0)
    tasks = batches.read(0)
    assert not reads
    dask.compute(*tasks)
    assert reads == {0: 1, 1: 1}


def from_delayed(blocks):
    return da.concatenate([da.from_delayed(block, (100, 1), np.float64) for block in blocks])


@dask.delayed
def block_of(rows, number):
    return rows[100 * number : 100 * (number + 1)]


def older_graph(rows):
    """Tasks as tuples, and keys that stand for other keys."""
    graph = {("made", i): (np.multiply, rows[100 * i : 100 * (i + 1)], 1.0) for i in range(9)}
    graph |= {("rows", i, 0): ("made", i) for i in range(9)}
    return da.Array(graph, "rows", ((100,) * 9, (1,)), dtype=np.float64)


def halves_changed_over(rows):
    array = da.from_array(rows, chunks=(100, 1))
    return da.concatenate([array[450:], array[:450]])[np.r_[450:900, 0:450]]


@pytest.mark.parametrize(
    "made",
    [
        lambda rows: da.concatenate([da.from_array(rows[:450], chunks=(100, 1)), da.from_array(rows[450:])]),
        lambda rows: da.concatenate([da.from_array(rows, chunks=(100, 1))[i : i + 70] for i in range(0, 900, 70)]),
        lambda rows: from_delayed([dask.delayed(rows[100 * i : 100 * (i + 1)]) for i in range(9)]),
        lambda rows: from_delayed([block_of(dask.delayed(rows), i) for i in range(9)]),
        lambda rows: from_delayed([block_of(dask.delayed(np.copy)(rows), i) for i in range(9)]),
        lambda rows: from_delayed([block_of(rows, i) for i in range(9)]).persist(),
        lambda rows: da.from_array(rows, chunks=(200, 1)).rechunk((130, 1)) * 2.0 - rows,
        lambda rows: da.from_array(rows, chunks=(300, 1)).map_blocks(np.copy)[np.arange(900)],
        lambda rows: da.stack([da.from_array(rows.ravel(), chunks=90)[i] for i in range(900)])[:, np.newaxis],
        older_graph,
        halves_changed_over,
    ],
)
@pytest.mark.parametrize("batch_size", [33, 400, 900])
def test_embeddings_may_be_any_dask_graph(made, batch_size):
    rows = np.arange(900, dtype=np.float64)[:, np.newaxis]
    embeddings = open_embeddings(made(rows)).data
    np.testing.assert_array_equal(np.concatenate(epoch(OuterBatches(embeddings, batch_size, None, seed=0))), rows[:, 0])
    in_order = delayed_of(*(call for _, call in read_in_order(embeddings)))
    np.testing.assert_array_equal(np.concatenate(rows_of(in_order)), rows[:, 0])


# --- rows that are not finite ----------------------------------------------------------------------------------------


def complaint(tasks):
    """What the ValueError says, nothing if there is none."""
    try:
        dask.compute(*tasks)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("shuffle", [None, "chunks"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
@settings(deadline=None, max_examples=30)
@given(data=st.data(), chunks=CHUNKS, batch_size=st.integers(20, 8000), dtype=st.sampled_from(["f2", "f4", "f8"]))
def test_a_row_that_is_not_finite_is_named_with_its_chunk(shuffle, value, data, chunks, batch_size, dtype):
    n_samples = sum(chunks)
    row = data.draw(st.integers(0, n_samples - 1))
    rows = np.ones((n_samples, 3), dtype)
    rows[row, data.draw(st.integers(0, 2))] = value
    chunk = int(np.searchsorted(np.cumsum(chunks), row, side="right"))
    embeddings = da.from_array(rows, chunks=(chunks, 3))
    batches = OuterBatches(embeddings, max(batch_size, n_samples // 10), shuffle, seed=1)
    message = f"row {row}, in chunk {chunk}, "
    complaints = [complaint(batches.read(iteration)) for iteration in range(batches.n_batches)]
    assert [message in text for text in complaints if text] == [True]  # by the one batch that holds it
    with pytest.raises(ValueError, match=message):
        dask.compute(*delayed_of(*(call for _, call in read_in_order(embeddings))))


@pytest.mark.parametrize("shuffle", [None, "chunks"])
@pytest.mark.parametrize("role", ["data", "validation", "encoded"])
def test_users_get_the_row_and_the_chunk_too(shuffle, role):
    Y = np.random.default_rng(0).standard_normal((500, 6))
    bad = Y.copy()
    bad[333, 2] = np.nan
    lazy = da.from_array(bad, chunks=(120, 6))
    model = DBKSVD(12, 2, batch_size=100, max_iter=5, shuffle=shuffle, random_state=0)
    uses = {
        "data": lambda: model.fit(lazy),
        "validation": lambda: model.fit(Y, validation=lazy),
        "encoded": lambda: Dictionary(np.eye(6), 2).encode(lazy).compute(),
    }
    with pytest.raises(ValueError, match="row 333, in chunk 2, "):
        uses[role]()
