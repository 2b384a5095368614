"""A stand-in for CuPy where there is no GPU: its arrays are NumPy's, and its kernels run in numba's CUDA simulator.

Like CuPy's, its arrays do not mix with NumPy arrays, and do not become ones unasked: what the library would do wrong on
a device is an error here, too. What is fast there is slow here. It has what is used, and no more: what is to be used as
well is looked up in CuPy first, as test_cupy_stand_in.py does where CuPy is installed.
"""

import sys
from contextlib import nullcontext
from copy import copy
from functools import partial
from random import Random
from threading import RLock
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
from greenlet import greenlet
from numba import cuda as numba_cuda
from numba.cuda.simulator import kernelapi
from numba.cuda.simulator.kernel import BlockManager, FakeCUDAKernel
from numba.cuda.simulator.kernelapi import Dim3
from numpy.lib.mixins import NDArrayOperatorsMixin

DEVICE_MEMORY = 8 * 2**30

FUNCTIONS = {
    "abs": "",
    "add": "out",
    "arange": "dtype",
    "argsort": "axis kind",
    "argwhere": "",
    "ascontiguousarray": "",
    "bincount": "minlength",
    "concatenate": "axis",
    "count_nonzero": "",
    "divmod": "",
    "einsum": "",
    "full": "",
    "linalg.eigh": "",
    "linalg.norm": "axis keepdims",
    "linalg.qr": "",
    "logical_not": "",
    "matmul": "out",
    "maximum": "out",
    "ones": "",
    "searchsorted": "",
    "sqrt": "",
    "stack": "",
    "take": "axis",
    "take_along_axis": "axis",
    "tensordot": "",
    "triu": "",
    "where": "",
    "zeros": "",
    "zeros_like": "",
}
"""Functions that NumPy has, too, each with what it may be given by name."""

METHODS = {
    "all": "axis",
    "any": "axis",
    "astype": "copy",
    "copy": "",
    "max": "axis",
    "ravel": "",
    "reshape": "",
    "sum": "axis dtype",
    "view": "",
}
"""The same of arrays."""


class ndarray(NDArrayOperatorsMixin):
    """An array "on the device"."""

    __array_priority__ = 100

    def __init__(self, values):
        self._values = values

    # --- what CuPy refuses

    def __array__(self, *_, **__):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
            "explicitly."
        )

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        known = method == "__call__" and set(kwargs) <= {"out"}
        return _call(ufunc, *inputs, **kwargs) if known else NotImplemented

    def __array_function__(self, function, _types, arguments, kwargs):
        ours = getattr(module, function.__name__, None)
        return ours(*arguments, **kwargs) if ours else NotImplemented

    # --- what CuPy has

    def get(self, *_, **__):
        return self._values.copy()

    def set(self, values, stream=None):
        if type(values) is not np.ndarray or values.shape != self.shape or values.dtype != self.dtype:
            raise TypeError("set takes NumPy arrays of the same shape and dtype")
        (stream or _Stream()).do(lambda: np.copyto(self._values, values))

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self._values.ctypes.data, False), "version": 3}

    @property
    def data(self):
        return SimpleNamespace(ptr=self._values.ctypes.data)

    @property
    def T(self):
        return ndarray(self._values.T)

    shape, dtype, ndim, size, nbytes, itemsize, flags, strides = (
        property(lambda self, name=name: getattr(self._values, name))
        for name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "flags", "strides")
    )

    def __len__(self):
        return len(self._values)

    def __getitem__(self, index):
        return _wrapped(self._values[_plain_index(index)])

    def __setitem__(self, index, values):
        if isinstance(values, list | tuple):
            raise TypeError(f"Unsupported type {type(values)}")
        self._values[_plain_index(index)] = _plain(values)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __repr__(self):
        return repr(self._values)

    def __reduce__(self):
        return asarray, (self._values,)

    def __float__(self):
        return float(self._values)

    def __int__(self):
        return int(self._values)

    def __bool__(self):
        return bool(self._values)

    def __getattr__(self, name):
        if name not in METHODS:
            raise AttributeError(f"arrays of the stand-in for CuPy have no {name}")
        return _checked(name, getattr(self._values, name), METHODS[name])


ndarray.__module__ = "cupy"


def _plain(value):
    if isinstance(value, ndarray):
        return value._values
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")  # as CuPy has it
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
    return value


def _plain_index(index):
    # CuPy takes NumPy arrays for indices, and moves them.
    if isinstance(index, tuple):
        return tuple(map(_plain_index, index))
    return index._values if isinstance(index, ndarray) else index


def _wrapped(value):
    if isinstance(value, np.ndarray | np.generic | int):
        return ndarray(np.asarray(value))  # CuPy has arrays without dimensions where NumPy has scalars
    if isinstance(value, tuple) and any(isinstance(part, np.ndarray) for part in value):
        return type(value)(*map(_wrapped, value)) if hasattr(value, "_fields") else tuple(map(_wrapped, value))
    return value


def _call(function, *arguments, **kwargs):
    return _wrapped(function(*map(_plain, arguments), **{name: _plain(value) for name, value in kwargs.items()}))


def _checked(name, function, named):
    def call(*arguments, **kwargs):
        if unknown := set(kwargs) - set(named.split()):
            raise TypeError(f"{name} of the stand-in for CuPy takes no {', '.join(unknown)}")
        if kwargs.get("kind", "stable") != "stable":
            raise ValueError("kind can only be None or 'stable'")  # as CuPy has it
        return _call(function, *arguments, **kwargs)

    return call


def empty(shape, dtype=float):
    """Full of what must not be read: memory of a device holds anything."""
    dtype = np.dtype(dtype)
    anything = np.nan if dtype.kind == "f" else True if dtype.kind == "b" else np.iinfo(dtype).min
    return ndarray(np.full(shape, anything, dtype))


def empty_like(array):
    return empty(array.shape, array.dtype)


def asarray(values, dtype=None, order=None):
    return values if isinstance(values, ndarray) and dtype is None else array(values, dtype, order=order)


def array(values, dtype=None, order=None):
    return ndarray(np.array(values._values if isinstance(values, ndarray) else values, dtype=dtype, order=order))


def asnumpy(values, *_, **__):
    return values.get() if isinstance(values, ndarray) else np.asarray(values)


class OutOfMemoryError(MemoryError):
    def __init__(self, size, total):
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


class CUDARuntimeError(RuntimeError):
    def __init__(self, status):
        messages = {
            35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
            100: "cudaErrorNoDevice: no CUDA-capable device is detected",
        }
        super().__init__(messages[status])


class _Stream:
    """What is queued is done when somebody waits for it; on the default stream at once."""

    ptr = 0

    def __init__(self, non_blocking=False):
        self._queue = [] if non_blocking else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    @property
    def done(self):
        return not self._queue

    def do(self, work):
        work() if self._queue is None else self._queue.append(work)

    def synchronize(self):
        while self._queue:
            self._queue.pop(0)()

    def record(self, *_):
        event = _Stream()
        event.synchronize = partial(self._until, self._queue[-1] if self._queue else None)
        return event

    def _until(self, work):
        while self._queue and any(queued is work for queued in self._queue):
            self._queue.pop(0)()


class _Device:
    id = 0
    attributes: ClassVar = {"MaxSharedMemoryPerBlockOptin": 232448, "SingleToDoublePrecisionPerfRatio": 2}

    def __init__(self, number=0):
        assert number == self.id, "there is one device"


def _make_module():
    made = ModuleType("cupy")
    made.__version__ = "14.0"
    stream = _Stream()
    device_module = SimpleNamespace(
        Stream=_Stream,
        Event=_Stream,
        Device=_Device,
        get_current_stream=lambda: stream,
        cublas=None,
        alloc_pinned_memory=lambda n_bytes: bytearray(n_bytes),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=SimpleNamespace(
            getDeviceCount=lambda: 1,
            runtimeGetVersion=lambda: 13_000,
            getDeviceProperties=lambda _: {"name": b"stand-in"},
            CUDARuntimeError=CUDARuntimeError,
            memGetInfo=lambda: (DEVICE_MEMORY, DEVICE_MEMORY),
        ),
    )
    pool = SimpleNamespace(used_bytes=lambda: 0, free_bytes=lambda: 0, total_bytes=lambda: 0, malloc=object())
    device_module.get_allocator = lambda: pool.malloc
    own = {f.__name__: f for f in (ndarray, asarray, array, asnumpy, empty, empty_like)}
    own |= {"cuda": device_module, "get_default_memory_pool": lambda: pool, "__file__": __file__, "__path__": []}
    made.__dict__.update(own)

    made.linalg = SimpleNamespace()
    for name, named in FUNCTIONS.items():
        *group, last = name.split(".")
        there, here = (getattr(np, *group), getattr(made, *group)) if group else (np, made)
        setattr(here, last, _checked(name, getattr(there, last), named))
    return made


module = _make_module()

_one_kernel = RLock()
"""The simulator runs one kernel at a time."""


class _Thread:
    """A thread of a block, which runs until it comes to a barrier or to its end."""

    def __init__(self, run, block, place, number):
        self.blockIdx, self.threadIdx, self.thread_id = Dim3(*block), Dim3(*place), number
        self.vote = 0
        self.greenlet = greenlet(run)

    def syncthreads(self):
        self.greenlet.parent.switch()

    def syncthreads_or(self, value):
        self.vote = value
        self.syncthreads()
        outcome = int(any(thread.vote for thread in self.block))
        self.syncthreads()
        return outcome


class _Turns:
    """The threads of a block, one after the other from barrier to barrier, in an order that changes at each.

    The simulator has a thread of Python for each, and polls them: a hundred times slower.
    """

    def current_thread(self):
        return self._running

    def run(self, manager, grid_point, *arguments):
        places = list(np.ndindex(*manager._block_dim))
        threads = [
            _Thread(lambda: manager._f(*arguments), grid_point, place, number) for number, place in enumerate(places)
        ]
        order = Random(0)
        alive = list(threads)
        for thread in threads:
            thread.block = threads
        while alive:
            order.shuffle(alive)
            for thread in alive:
                self._running = thread
                thread.greenlet.switch()
            alive = [thread for thread in alive if not thread.greenlet.dead]


_configure, _run = FakeCUDAKernel.__getitem__, FakeCUDAKernel.__call__


def _as_cuda_array(array, sync):
    assert not sync, "numba would wait for the stream"
    assert array.flags.c_contiguous, "numba would compile the kernel for another layout"
    return array._values


def install(monkeypatch):
    """Let ``import cupy`` find the stand-in, and numba's simulator take its arrays."""
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(numba_cuda, "as_cuda_array", _as_cuda_array, raising=False)
    monkeypatch.setattr(numba_cuda, "external_stream", lambda _: 0, raising=False)

    def configured(kernel, configuration):
        own = copy(kernel)
        _configure(own, configuration)
        return own

    def one_at_a_time(kernel, *arguments):
        with nullcontext() if kernel._device else _one_kernel:
            return _run(kernel, *arguments)

    monkeypatch.setattr(FakeCUDAKernel, "__getitem__", configured)
    monkeypatch.setattr(FakeCUDAKernel, "__call__", one_at_a_time)
    turns = _Turns()
    monkeypatch.setattr(kernelapi, "threading", turns)
    monkeypatch.setattr(BlockManager, "run", lambda *arguments: turns.run(*arguments))
    from dbksvd_dask.kernels.cuda import launching

    monkeypatch.setattr(launching, "_ask_for_shared_memory", lambda *_: None)
    monkeypatch.setattr(launching, "THREADS", 4)
    monkeypatch.setattr(launching, "TILE", (4, 2))
    return module
