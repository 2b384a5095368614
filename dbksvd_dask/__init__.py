"""Sparse dictionaries of transformer embeddings by Double-Batch K-SVD, as Dask graphs of numba kernels."""

from dbksvd_dask import bounds
from dbksvd_dask.baseline import Baseline, ksvd_baseline
from dbksvd_dask.callbacks import Callback, ProgressBar, StopOnPlateau, TimeBudget
from dbksvd_dask.codes import SparseCodes, open_codes
from dbksvd_dask.compare import compare, stability
from dbksvd_dask.dictionary import Dictionary, open_dictionary
from dbksvd_dask.embeddings import open_embeddings
from dbksvd_dask.embeddings.synthetic import ToyProblem, toy_problem
from dbksvd_dask.estimator import DBKSVD
from dbksvd_dask.sweep import sweep

__all__ = [
    "DBKSVD",
    "Baseline",
    "Callback",
    "Dictionary",
    "ProgressBar",
    "SparseCodes",
    "StopOnPlateau",
    "TimeBudget",
    "ToyProblem",
    "bounds",
    "compare",
    "ksvd_baseline",
    "open_codes",
    "open_dictionary",
    "open_embeddings",
    "stability",
    "sweep",
    "toy_problem",
]
