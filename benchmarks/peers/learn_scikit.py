"""scikit-learn's MiniBatchDictionaryLearning by coordinate descent.

In float64: in float32 its duality gap never falls below its tolerance, and each row takes all 1,000 sweeps. It encodes
on two threads, with BLAS on one, since an update is m small products.
"""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import penalised
from clock import Clock, marks
from rows import batches, centred, first_atoms
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits


def learn(train: Path, mean: np.ndarray, m: int, k: int, settings: dict[str, Any], clock: Clock) -> None:
    """Give it batch after batch."""
    n_samples, batch_size, alpha = settings["n_samples"], settings["batch_size"], settings["alpha"]
    clock.start()
    rows = centred(train, mean)
    model = MiniBatchDictionaryLearning(
        m, alpha=alpha, fit_algorithm="cd", dict_init=first_atoms(rows, m).astype(np.float64), n_jobs=2, random_state=0
    )
    shown, seen = marks(n_samples, batch_size), 0
    with threadpool_limits(1), joblib.parallel_config("threading", n_jobs=2), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for batch in batches(rows, batch_size):
            model.partial_fit(batch.astype(np.float64))
            seen += batch_size
            if seen in shown:
                atoms = model.components_.astype(np.float32)
                clock.record(seen, atoms, partial(penalised.encode, atoms, k))
            if seen >= n_samples:
                return
