"""Fingerprints of embeddings, by which a fit that is resumed knows them again."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from dbksvd_dask.kernels.backend import to_host
from dbksvd_dask.lost_workers import replayed

MOST_BYTES = 2**30
"""Of larger embeddings so much is looked at, in chunks spread evenly over them."""

Fingerprint = Mapping[str, Any]
"""Shape, dtype, chunks and content, as JSON has them."""


def fingerprint(embeddings: xr.DataArray) -> Fingerprint:
    """By what embeddings are known again: computed from up to `MOST_BYTES` of them, wherever they lie.

    Parameters
    ----------
    embeddings : (n, d) xarray.DataArray
        On dask chunks, as from `open_embeddings`.

    Examples
    --------
    >>> import numpy as np
    >>> from dbksvd_dask import open_embeddings
    >>> Y = np.arange(6.0).reshape(3, 2)
    >>> fingerprint(open_embeddings(Y)) == fingerprint(open_embeddings(Y.copy()))
    True
    >>> differences(fingerprint(open_embeddings(Y)), fingerprint(open_embeddings(Y[::-1])), "Y")
    ['Y holds other values']
    """
    data = embeddings.data
    sizes = data.chunks[0]
    n_chunks = min(len(sizes), max(1, MOST_BYTES // (max(sizes) * data.shape[1] * data.dtype.itemsize)))
    chosen = np.unique(np.linspace(0, len(sizes) - 1, n_chunks).astype(int)).tolist()
    digests = data.blocks[chosen].map_blocks(_digest, dtype=np.uint8, chunks=(1, 32), meta=np.empty((0, 0), np.uint8))
    content = replayed(digests.compute, "the fingerprint of the embeddings")
    return {
        "samples": data.shape[0],
        "features": data.shape[1],
        "dtype": str(data.dtype),
        "rows of a chunk": max(sizes),
        "chunks": hashlib.sha256(np.array(sizes, np.int64).tobytes()).hexdigest(),
        "content": hashlib.sha256(content.tobytes()).hexdigest(),
    }


def _digest(block: np.ndarray) -> np.ndarray:
    digest = hashlib.sha256(np.ascontiguousarray(to_host(block)).data).digest()
    return np.frombuffer(digest, np.uint8)[np.newaxis]


def differences(saved: Fingerprint | None, present: Fingerprint | None, name: str) -> list[str]:
    """In what embeddings are not those of a fit, in words; nothing where they are.

    Parameters
    ----------
    saved, present : Fingerprint or None
        Of the fit's embeddings, and of those at hand; None where there are none.
    name : str
        The argument that they are passed as.
    """
    if saved is None or present is None:
        if saved is present:
            return []
        return [f"the fit had no {name} embeddings" if saved is None else f"the fit had {name} embeddings: pass them"]
    texts = {
        "samples": "{name} has {present:,} samples, the fit had {saved:,}",
        "features": "{name} has {present} features, the fit had {saved}",
        "dtype": "{name} is {present}, the fit had {saved}",
        "rows of a chunk": "{name} is in chunks of {present:,} rows, the fit had {saved:,}",
        "chunks": "{name} is in other chunks of rows",
        "content": "{name} holds other values",
    }
    # Other chunks follow from another shape, and other values from either: what comes first is what was done.
    for keys in (("samples", "features", "dtype"), ("rows of a chunk",), ("chunks",), ("content",)):
        differing = [key for key in keys if saved[key] != present[key]]
        if differing:
            return [texts[key].format(name=name, saved=saved[key], present=present[key]) for key in differing]
    return []
