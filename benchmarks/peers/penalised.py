"""L1-penalised codes, ½ ‖y − x D‖² + α ‖x‖₁, that have k nonzeros a row on average."""

import numpy as np
import spams
from scipy.sparse import csr_array

SEARCH_ROWS = 1024


def encode(atoms: np.ndarray, k: int, rows: np.ndarray) -> tuple[csr_array, np.ndarray]:
    """Codes with the α that gives k nonzeros a row, found by halving on some of the rows."""
    low, high = 0.0, float(np.abs(rows[:SEARCH_ROWS] @ atoms.T).max())
    for _ in range(14):
        alpha = (low + high) / 2
        too_many = lasso(atoms, rows[:SEARCH_ROWS], alpha).nnz > k * len(rows[:SEARCH_ROWS])
        low, high = (alpha, high) if too_many else (low, alpha)
    codes = lasso(atoms, rows, high)
    return codes, codes @ atoms


def lasso(atoms: np.ndarray, rows: np.ndarray, alpha: float) -> csr_array:
    """Codes (n, m), exact, by SPAMS's LARS."""
    columns, D = (np.asfortranarray(part.T, dtype=np.float32) for part in (rows, atoms))
    return csr_array(spams.lasso(columns, D=D, lambda1=alpha, mode=2, numThreads=2).T)
