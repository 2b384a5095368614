"""SPAMS's online dictionary learning: codes by an L1 penalty (mode 2) or by k nonzeros (mode 3, OMP)."""

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import penalised
import spams
from clock import Clock, marks
from rows import centred, first_atoms
from scipy.sparse import csr_array

ROWS_OF_A_CALL = 65536


def learn(train: Path, mean: np.ndarray, m: int, k: int, settings: dict[str, Any], clock: Clock) -> None:
    """Call `trainDL` with the next rows and the model of the call before."""
    n_samples, mode, batch_size = settings["n_samples"], settings["mode"], settings["batchsize"]
    clock.start()
    rows = centred(train, mean)
    atoms, model = np.asfortranarray(first_atoms(rows, m).T), None
    shown = marks(n_samples, batch_size)
    for start, end in pairwise(sorted({*range(0, n_samples, ROWS_OF_A_CALL), *shown})):
        columns = np.asfortranarray(rows.take(range(start, end), axis=0, mode="wrap").T)
        n_batches = (end - start) // batch_size
        atoms, model = spams.trainDL(
            columns, return_model=True, model=model, D=atoms, iter=n_batches, numThreads=2, verbose=False,
            mode=mode, batchsize=batch_size, lambda1=settings["lambda1"],
        )  # fmt: skip
        if end in shown:
            learned = np.ascontiguousarray(atoms.T)
            clock.record(end, learned, partial(penalised.encode if mode == 2 else omp, learned, k))


def omp(atoms: np.ndarray, k: int, rows: np.ndarray) -> tuple[csr_array, np.ndarray]:
    """Codes by SPAMS's own OMP, which takes unit-norm atoms."""
    atoms = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = spams.omp(np.asfortranarray(rows.T), np.asfortranarray(atoms.T), L=k, eps=0.0, numThreads=2)
    codes = csr_array(codes.T)
    return codes, codes @ atoms
