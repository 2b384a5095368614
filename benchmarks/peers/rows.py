"""Training rows as learners other than ours take them: in memory, centred, batch after batch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dbksvd_dask import open_embeddings


def mean_of(train: Path) -> np.ndarray:
    """Mean of the training rows: (d,) float32."""
    return open_embeddings(train).data.mean(axis=0, dtype=np.float64).compute().astype(np.float32)


def centred(rows: Path, mean: np.ndarray) -> np.ndarray:
    """All rows less the mean: (n, d) float32."""
    return open_embeddings(rows).values.astype(np.float32) - mean


def batches(rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Batches in storage order without end: the rows are shuffled already."""
    start = 0
    while True:
        yield rows.take(range(start, start + batch_size), axis=0, mode="wrap")
        start = (start + batch_size) % len(rows)


def first_atoms(rows: np.ndarray, n_atoms: int) -> np.ndarray:
    """The first rows, of unit norm: what online dictionary learning begins with."""
    return rows[:n_atoms] / np.linalg.norm(rows[:n_atoms], axis=1, keepdims=True)
