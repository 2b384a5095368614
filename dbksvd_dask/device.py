"""What computing on a GPU needs, looked at before any work, and errors that say what to do where it is missing."""

import ctypes
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import Any

import numpy as np
import xarray as xr

from dbksvd_dask.kernels.backend import on_device
from dbksvd_dask.warning import warn_caller

SLOW_FLOAT64 = 16
"""From this ratio on float64 is called slow: devices made for it take twice as long as for float32, others 32 or 64."""

_CUPY = "cupy", "cupy-cuda12x", "cupy-cuda13x"
"""Packages that all install CuPy, of which one at a time works."""


def check_gpu() -> None:
    """Raise unless this process can compute on a GPU.

    Raises
    ------
    ImportError
        If CuPy or numba-cuda is missing, or CuPy is there twice, or without the libraries it needs.
    OSError
        If there is no driver, or it is older than CuPy needs, or no GPU.
    """
    twice = [name for name in _CUPY if _is_installed(name)]
    if len(twice) > 1:
        raise ImportError(
            f"CuPy is installed by {' and '.join(twice)}, of which only one works: "
            f"pip uninstall {' '.join(twice)}, then {_install()}"
        )
    try:
        import cupy
    except ImportError as error:
        if find_spec("cupy") is None:
            raise ImportError(f"CuPy, which device='cuda' needs, is not installed: {_install()}") from error
        # CuPy frames a whole page around what has happened.
        raise ImportError(f"CuPy cannot be imported ({error.__cause__ or error}): {_install()}") from error
    if find_spec("numba_cuda") is None:
        raise ImportError(f"numba-cuda, which device='cuda' needs, is not installed: {_install()}")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise OSError(_without_gpu(cupy.cuda.runtime.runtimeGetVersion() // 1000, str(error))) from error
    try:
        _ = cupy.cuda.cublas
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        raise ImportError(f"CuPy does not find the libraries of CUDA ({reason}): {_install()}") from error


def device_of(embeddings: xr.DataArray) -> str | None:
    """The name of the GPU that embeddings are on, with the libraries that compute there; None if they are on none."""
    if not on_device(embeddings.data):
        return None
    import cupy  # is there, where it holds embeddings

    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    cuda = runtime.runtimeGetVersion()
    return f"{name} with CuPy {cupy.__version__}, CUDA {cuda // 1000}.{cuda % 1000 // 10}"


def warn_of_slow_float64(dtype: np.dtype) -> None:
    """Warn if this is the precision in which the current device computes much more slowly.

    Parameters
    ----------
    dtype : numpy.dtype
        In which is computed.
    """
    import cupy  # is there, where it is computed on a device

    ratio = cupy.cuda.Device().attributes["SingleToDoublePrecisionPerfRatio"]
    if dtype == np.float64 and ratio >= SLOW_FLOAT64:
        warn_caller(
            f"this device computes {ratio} times more slowly in float64 than in float32: "
            'pass dtype="float32", unless the results need float64'
        )


def refuse_cupy(array: Any, name: str) -> None:
    """Raise if an array that has to be on the host is on a device.

    Parameters
    ----------
    array : anything
    name : str
        What the error calls it.
    """
    if not on_device(array):
        return
    if hasattr(array, "dask"):
        raise TypeError(
            f"{name} has CuPy arrays for chunks, but has to be on the host: pass it with .map_blocks(cupy.asnumpy)"
        )
    raise TypeError(f"{name} is a CuPy array, but has to be on the host: pass it with .get()")


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def _without_gpu(built_for: int, reason: str) -> str:
    """Why CUDA has no GPU for a CuPy that is built for this version, and what to do."""
    driver = _driver_version()
    if driver == 0:
        return (
            "there is no NVIDIA driver here: run it on a computer with a GPU, install the driver there, or give the "
            "container access to it (docker run --gpus all)"
        )
    if driver // 1000 < built_for:
        return (
            f"CuPy is built for CUDA {built_for}, but the driver only knows CUDA {driver // 1000}.{driver % 1000 // 10}"
            f": pip uninstall cupy-cuda{built_for}x, then {_install()}; or update the driver"
        )
    return (
        f"there is no GPU that can be used ({reason}): nvidia-smi shows those of this computer, CUDA_VISIBLE_DEVICES "
        "which of them this process may see"
    )


def _install() -> str:
    """What installs all that is needed, for the driver that is here."""
    driver = _driver_version() // 1000
    extras = ["cuda12", "cuda13"] if driver == 0 else ["cuda13" if driver >= 13 else "cuda12"]
    return " or ".join(f'pip install "dbksvd-dask[{extra}]"' for extra in extras)


def _driver_version() -> int:
    """The newest CUDA that the driver knows, as 12040 for 12.4; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    return version.value
