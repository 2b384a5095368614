"""Where embeddings come from: files, stores and arrays, opened lazily as ``(sample, feature)``."""

from dbksvd_dask.embeddings.opening import open_embeddings

__all__ = ["open_embeddings"]
