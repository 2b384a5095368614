"""Every kernel compiles for a device of today, and those of float32 compute in float32: no GPU is needed for that.

What the simulator runs is Python. Only the compiler sees that a number has become a float64 on the way.
"""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

KERNELS = {
    "least_squares._refit_least_squares": "f2 f2 d i2 f2 d4 d3",
    "pursuit._pursue_in_place": "f2 f2 d1 l d1 d1 b i2 f2",
    "pursuit._pursue_in_shared_memory": "f2 f2 d1 l d1 d1 b i2 f2",
    "pursuit._pursue_orthogonally": "f2 f2 d1 d1 d1 d i2 f2 d4 d3",
    "pursuit._subtract_reconstruction": "f2 f2 i2 f2",
    "update._accumulate_residual": "f2 i1 l1 f1 f2",
    "update._project_in_place": "f2 f2 i2 f2 f2 b",
    "update._project_in_shared_memory": "f2 f2 i2 f2 f2 b",
    "update._sum_by_atom": "l1 f1 d1",
    "update._support_products": "f2 f2 i1 i1 f1",
    "vector._long_dots": "f2 f2 d1",
    "vector._rows_with_all_bits": "u2 u b1",
    "vector._segment_moments": "f2 d2 d2",
}
"""What each kernel takes. f: floats, u: their bits, d: float64, i: int32, l: int64, b: boolean; how many dimensions."""

FLOAT64_OPERATIONS = {
    "pursuit._pursue_in_place": 2,  # c² of a step, which ‖r‖² loses
    "pursuit._pursue_in_shared_memory": 2,
    "pursuit._subtract_reconstruction": 0,
    "update._accumulate_residual": 0,
    "update._project_in_place": 0,
    "update._project_in_shared_memory": 0,
    "update._support_products": 0,
}
"""How many instructions of kernels of float32 compute in float64, at most; all others do so on purpose."""

COMPILE = """
import json, sys
from types import SimpleNamespace

try:
    from numba.cuda.cudadrv.nvvm import NVVM
    NVVM()
except Exception as error:
    sys.exit(f"no compiler: {error}")

import cupy_stand_in
sys.modules["cupy"] = cupy_stand_in.module

from importlib import import_module
from pkgutil import iter_modules

import dbksvd_dask.kernels.cuda as package
from numba import cuda, types
from numba.cuda import dispatcher

CAPABILITY = 9, 0
# What kernels call is compiled for the device that is there, and so has to be told.
dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=CAPABILITY)


def argument(code, width):
    kind = {
        "f": {32: types.float32, 64: types.float64}[width],
        "u": {32: types.uint32, 64: types.uint64}[width],
        "d": types.float64,
        "i": types.int32,
        "l": types.int64,
        "b": types.boolean,
    }[code[0]]
    return types.Array(kind, int(code[1:]), "C") if code[1:] else kind


kernels = {}
for entry in iter_modules(package.__path__):
    for name, value in vars(import_module(f"{package.__name__}.{entry.name}")).items():
        if isinstance(value, dispatcher.CUDADispatcher) and not value.targetoptions.get("device"):
            if value.py_func.__module__ == f"{package.__name__}.{entry.name}":
                kernels[f"{entry.name}.{name}"] = value

ptx = {}
for name, codes in json.load(sys.stdin).items():
    for width in (32, 64):
        signature = tuple(argument(code, width) for code in codes.split())
        function = kernels[name].py_func
        text, _ = cuda.compile(function, signature, cc=CAPABILITY, device=False, abi="numba", output="ptx")
        ptx[f"{name} {width}"] = text
json.dump({"found": sorted(kernels), "ptx": ptx}, sys.stdout)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The kernels that there are, and their PTX: from a process whose numba does not simulate."""
    if find_spec("numba_cuda") is None:
        pytest.skip("numba-cuda is not installed: kernels are not compiled")
    tests = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tests.parent), str(tests)])
    environment["NUMBA_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], input=json.dumps(KERNELS), env=environment, capture_output=True, text=True
    )
    if "no compiler: " in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_table_has_every_kernel(compiled):
    assert sorted(KERNELS) == compiled["found"]


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_compiles(compiled, kernel, width):
    ptx = compiled["ptx"][f"{kernel} {width}"]
    assert ".target sm_90" in ptx
    assert ".visible .entry" in ptx
    assert "call" not in re.findall(r"^\s*(call)\b", ptx, re.MULTILINE), "what it calls should have been inlined"


@pytest.mark.parametrize("kernel", FLOAT64_OPERATIONS)
def test_kernels_of_float32_compute_in_float32(compiled, kernel):
    ptx = compiled["ptx"][f"{kernel} 32"]
    assert re.search(r"\b(?:fma|mul)\S*\.f32\b", ptx)
    assert len(re.findall(r"\b(?:fma|mul|add|sub|div)\S*\.f64\b", ptx)) <= FLOAT64_OPERATIONS[kernel]


def test_indices_are_never_float64(compiled):
    """Numba takes differences of unsigned numbers and numbers with a sign in float64."""
    of_integers = r"cvt\.r[nz]\.f64\.[su](?:32|64)"
    found = {name: len(re.findall(of_integers, text)) for name, text in compiled["ptx"].items()}
    assert not any(found.values()), {name: count for name, count in found.items() if count}
