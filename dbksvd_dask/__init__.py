"""Sparse dictionaries of transformer embeddings by Double-Batch K-SVD, as Dask graphs of numba kernels."""

from dbksvd_dask.callbacks import Callback, ProgressBar, StopOnPlateau, TimeBudget
from dbksvd_dask.codes import SparseCodes, open_codes
from dbksvd_dask.dictionary import Dictionary, open_dictionary
from dbksvd_dask.embeddings import open_embeddings
from dbksvd_dask.estimator import DBKSVD

__all__ = [
    "DBKSVD",
    "Callback",
    "Dictionary",
    "ProgressBar",
    "SparseCodes",
    "StopOnPlateau",
    "TimeBudget",
    "open_codes",
    "open_dictionary",
    "open_embeddings",
]
