"""What stands in for CuPy where there is no GPU has what the library uses, refuses what CuPy refuses, and no more."""

import ast
import inspect
import operator
import re
from operator import attrgetter
from pathlib import Path

import cupy_stand_in
import numpy as np
import pytest

import dbksvd_dask

NAMES = "cupy", "xp"
"""By which modules of the library call CuPy, or CuPy or NumPy."""


def names_in_use():
    """All of CuPy that the library names: "empty", "cuda.runtime.memGetInfo"."""
    found = set()
    for path in Path(dbksvd_dask.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                name = re.fullmatch(rf"(?:ops\.)?(?:{'|'.join(NAMES)})\.([\w.]+)", ast.unparse(node))
                found |= {name[1]} if name else set()
    return found


@pytest.fixture(scope="module")
def installed():
    """CuPy itself, which needs no GPU to be looked at."""
    return pytest.importorskip("cupy", exc_type=ImportError)


def test_it_has_what_the_library_uses():
    used = names_in_use()
    assert {"empty", "linalg.eigh", "cuda.runtime.memGetInfo"} <= used
    only_named_in_types = {"cuda.MemoryPointer"}
    for name in used - only_named_in_types:
        attrgetter(name)(cupy_stand_in.module)


def test_cupy_has_what_the_library_uses(installed):
    loaded_on_demand = {"cuda.cublas"}  # where there is a driver
    for name in names_in_use() - loaded_on_demand:
        attrgetter(name)(installed)


@pytest.mark.parametrize("name", [*cupy_stand_in.FUNCTIONS, *(f"ndarray.{name}" for name in cupy_stand_in.METHODS)])
def test_cupy_takes_what_it_takes(installed, name):
    function = attrgetter(name)(installed)
    try:
        said = str(inspect.signature(function))
    except (TypeError, ValueError):  # compiled: it says so itself
        said = function.__doc__.partition("\n")[0]
    named = (cupy_stand_in.FUNCTIONS | {f"ndarray.{n}": by_name for n, by_name in cupy_stand_in.METHODS.items()})[name]
    assert all(re.search(rf"\b{argument}\b", said) for argument in named.split()), said


# --- what both refuse ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        lambda cupy, a: np.asarray(a),
        lambda cupy, a: a + np.ones(3),
        lambda cupy, a: np.ones(3) * a,
        lambda cupy, a: cupy.maximum(a, np.ones(3)),
        lambda cupy, a: operator.setitem(a, slice(None), [1.0, 2.0, 3.0]),
        lambda cupy, a: operator.index(cupy.count_nonzero(a)),
        lambda cupy, a: np.add(a, a, where=a > 0),
        lambda cupy, a: cupy.concatenate([a, np.ones(3)]),
    ],
    ids=["conversion", "sum", "product", "function", "list", "index", "where", "concatenation"],
)
def test_host_and_device_do_not_mix(cupy, wrong):
    with pytest.raises((TypeError, ValueError)):
        wrong(cupy, cupy.ones(3))


def test_a_number_of_a_device_is_an_array_there(cupy):
    assert isinstance(cupy.count_nonzero(cupy.ones(3)), cupy.ndarray)
    assert isinstance(cupy.ones(3).sum(), cupy.ndarray)
