"""What the tests of kernels on a device share."""

import pytest

BLOCKS = [None, (2, (2, 4)), (1, (1, 1))]
"""Threads of a block, and of one of two dimensions; None for those that the library has."""


@pytest.fixture(params=BLOCKS, ids=str)
def kernels(request, cupy, monkeypatch):
    """The kernels, run in blocks of several sizes."""
    from dbksvd_dask.kernels import cuda
    from dbksvd_dask.kernels.cuda import launching

    if request.param:
        threads, tile = request.param
        monkeypatch.setattr(launching, "THREADS", threads)
        monkeypatch.setattr(launching, "TILE", tile)
    return cuda
