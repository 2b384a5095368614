"""Rows in random order by way of the disk: all of them, and all orders equally likely."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from dbksvd_dask.embeddings.shuffled import N_FILES, Scattered, permuted

ROW = np.dtype([("values", "f4", (2,)), ("number", "i4")])


def shuffled(folder, n_rows, seed, most_rows, part_rows=1000, n_files=N_FILES):
    """Numbers of rows in the order that they come out; no more than ``most_rows`` are in memory at a time."""
    rows = np.zeros(n_rows, ROW)
    rows["number"] = np.arange(n_rows)
    rows["values"] = rows["number"][:, None] * [1, -1]
    with Scattered(folder, ROW, seed, (0,) * n_files) as scattered:
        for part, start in enumerate(range(0, n_rows, part_rows)):
            scattered.add(rows[start : start + part_rows], part)
    found = []
    for _, some, order in permuted(scattered, most_rows):
        assert len(some) <= most_rows
        found.append(some[order])
    found = np.concatenate(found)
    np.testing.assert_array_equal(found["values"], found["number"][:, None] * [1, -1])
    return found["number"]


@pytest.mark.parametrize("most_rows", [2, 100, 10**6], ids=["scattered again and again", "again", "once"])
def test_each_row_comes_once(tmp_path, most_rows):
    numbers = shuffled(tmp_path, 10_000 if most_rows > 2 else 200, 0, most_rows, n_files=8)
    assert sorted(numbers.tolist()) == list(range(len(numbers)))


def test_the_seed_tells_the_order(tmp_path):
    orders = [shuffled(tmp_path, 1000, seed, 100, n_files=4).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("most_rows", [1, 3, 10], ids=["scattered again and again", "again", "once"])
def test_all_orders_are_equally_likely(tmp_path, most_rows):
    """Of three rows each of the six orders comes a sixth of the time."""
    n_trials = 120
    seen = [tuple(shuffled(tmp_path, 3, seed, most_rows, part_rows=2, n_files=2)) for seed in range(n_trials)]
    counts = [seen.count(order) for order in permutations(range(3))]
    assert sum(counts) == n_trials
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("most_rows", [450, 10**6], ids=["scattered again", "once"])
def test_the_order_has_the_statistics_of_random_ones(tmp_path, most_rows):
    """Each figure is as near to what is expected of uniform permutations as its known distribution has it."""
    n = 40_000
    numbers = shuffled(tmp_path, n, 0, most_rows)
    # Where a row goes does not follow from where it was.
    correlation = stats.spearmanr(np.arange(n), numbers).statistic
    assert abs(correlation) * np.sqrt(n - 1) < 4  # Normal(0, 1)
    # Neighbours are not neighbours any more: pairs of successive rows are Poisson(2).
    n_pairs = (np.abs(np.diff(numbers)) == 1).sum()
    assert stats.poisson(2).sf(n_pairs - 1) > 1e-4
    # Ascents: the Eulerian distribution has mean (n − 1) / 2 and variance (n + 1) / 12.
    ascents = (np.diff(numbers) > 0).sum()
    assert abs(ascents - (n - 1) / 2) / np.sqrt((n + 1) / 12) < 4
    # Rows of one document, which lay together, are spread evenly over the whole and over each stretch of 625 rows.
    document = numbers // 400
    places = np.flatnonzero(document == 7)
    assert stats.kstest(places / n, "uniform").pvalue > 1e-4
    table = np.array([np.bincount(part, minlength=100) for part in document.reshape(64, 625)])
    assert 1e-4 < stats.chi2_contingency(table).pvalue < 1 - 1e-4
    # Runs of rows that are all from the first or all from the second half (Wald–Wolfowitz).
    runs = 1 + (np.diff(numbers < n // 2) != 0).sum()
    mean = 1 + n / 2
    assert abs(runs - mean) / np.sqrt((mean - 1) * (mean - 2) / (n - 1)) < 4


def test_rows_go_on_where_they_were_counted(tmp_path):
    """What was added after the count is cut off, and added again."""
    rows = np.zeros(500, ROW)
    rows["number"] = np.arange(500)
    with Scattered(tmp_path / "whole", ROW, seed=3) as whole:
        for part in range(5):
            whole.add(rows[part * 100 : part * 100 + 100], part)
    with Scattered(tmp_path / "cut", ROW, seed=3) as before:
        for part in range(2):
            before.add(rows[part * 100 : part * 100 + 100], part)
        counted = list(before.sizes)
        before.add(rows[200:250], 2)  # a part that was not counted any more
    with Scattered(tmp_path / "cut", ROW, 3, counted) as after:
        for part in range(2, 5):
            after.add(rows[part * 100 : part * 100 + 100], part)
    assert after.sizes == whole.sizes
    assert len(after.sizes) == N_FILES
    for file in range(N_FILES):
        assert after.path(file).read_bytes() == whole.path(file).read_bytes()
