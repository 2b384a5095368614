"""DBKSVD: reads the file as it goes, k nonzeros by matching pursuit, two threads of Dask."""

from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
from clock import Clock, marks
from scipy.sparse import csr_array

from dbksvd_dask import DBKSVD, Dictionary
from dbksvd_dask.history import Iteration


def learn(train: Path, mean: np.ndarray, m: int, k: int, settings: dict[str, Any], clock: Clock) -> None:
    """Fit, showing the dictionary after some of the iterations."""
    iterations = set(marks(settings["max_iter"], 1))

    def record(model: DBKSVD, iteration: Iteration) -> None:
        if model.n_iter_ in iterations:
            dictionary = Dictionary(model.components_.copy(), k, encoder=model.encoder)
            clock.record(iteration.n_samples_seen, dictionary.atoms, partial(encode, dictionary))

    with dask.config.set(num_workers=2):
        DBKSVD(2, 1, max_iter=1, center=True).fit(np.eye(8, 16, dtype=np.float32))  # compiles
        clock.start()
        DBKSVD(m, k, center=True, random_state=0, callbacks=[record], **settings).fit(train)


def encode(dictionary: Dictionary, rows: np.ndarray) -> tuple[csr_array, np.ndarray]:
    """Codes by the pursuit of the fit."""
    codes = dictionary.encode(rows)
    return codes.to_csr(), dictionary.decode(codes)
