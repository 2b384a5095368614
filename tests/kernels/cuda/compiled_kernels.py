"""The CUDA kernels compiled for the CPU: as numba types them, with a thread of the system for each thread of a block.

The simulator runs kernels as Python, in which numbers have other types than in compiled code, and threads take turns.
Here barriers are those of pthread, indices are checked, and shared memory begins with whatever was there.
"""

import ast
import ctypes
import inspect
import textwrap
from threading import Barrier, Thread

import numpy as np
from numba import njit, typeof
from numba.cuda.simulator.kernel import FakeCUDAKernel

_system = ctypes.CDLL(None)
_wait = _system.pthread_barrier_wait
_wait.argtypes, _wait.restype = [ctypes.c_void_p], ctypes.c_int

_BYTES_OF_A_BARRIER = 64
_BYTES_OF_AN_ARRAY = 2**16

_PLACE = {
    f"cuda.{name}.{axis}": 2 * i + j
    for i, name in enumerate(("threadIdx", "blockIdx", "blockDim", "gridDim"))
    for j, axis in enumerate("xy")
}
_PLACE["bytes of dynamic shared memory"] = len(_PLACE)

_MORE = ("_place", "_barrier", "_votes", "_shared")
"""What compiled functions take first: where the thread is, and what it shares with those of its block."""


@njit(nogil=True)
def _synchronize(barrier):
    _wait(barrier)


@njit(nogil=True)
def _synchronize_or(place, barrier, votes, value):
    votes[place[0] + place[4] * place[1]] = value
    _wait(barrier)
    outcome = np.int32(votes.any())
    _wait(barrier)
    return outcome


class CompiledKernels:
    """All kernels of some modules, and the device functions that they call."""

    def __init__(self, modules):
        kernels = {
            name: value.fn
            for module in modules
            for name, value in vars(module).items()
            if isinstance(value, FakeCUDAKernel) and value.fn.__module__ == module.__name__
        }
        self._n_arrays = 0
        self._functions = {}
        spaces = {}
        for name, function in kernels.items():
            space = spaces.setdefault(function.__module__, dict(function.__globals__))
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
            tree.body[0].decorator_list = []
            tree.body[0].args.args[:0] = [ast.arg(more) for more in _MORE]
            for argument in tree.body[0].args.args:
                argument.annotation = None
            made = {}
            exec(compile(ast.fix_missing_locations(_ForCPU(self, kernels).visit(tree)), name, "exec"), space, made)
            self._functions[name] = njit(nogil=True, error_model="numpy", boundscheck=True)(made[name])
        for space in spaces.values():
            space.update(self._functions, _synchronize=_synchronize, _synchronize_or=_synchronize_or)

    def number_of_another_array(self):
        self._n_arrays += 1
        return self._n_arrays - 1

    def run(self, kernel, *arguments):
        """Stands for the simulator's `FakeCUDAKernel.__call__`, of a kernel that is configured."""
        (grid_x, grid_y, _), (block_x, block_y, _) = kernel.grid_dim, kernel.block_dim
        n_threads = block_x * block_y
        memory = ctypes.create_string_buffer(_BYTES_OF_A_BARRIER)
        _system.pthread_barrier_init(memory, None, n_threads)
        votes = np.zeros(n_threads, np.int32)
        shared = np.zeros((self._n_arrays, _BYTES_OF_AN_ARRAY), np.uint8)
        everything = ctypes.addressof(memory), votes, shared, *arguments
        function = self._functions[kernel.fn.__name__]
        function.compile((typeof(np.zeros(len(_PLACE), np.int32)), *map(typeof, everything)))
        together, errors = Barrier(n_threads, action=lambda: shared.fill(0xAB)), []

        def run_thread(x, y):
            try:
                for block in np.ndindex(grid_x, grid_y):
                    together.wait()
                    sizes = block_x, block_y, grid_x, grid_y, kernel.dynshared_size
                    function(np.array((x, y, *block, *sizes), np.int32), *everything)
            except BaseException as error:
                errors.append(error)
                together.abort()

        threads = [Thread(target=run_thread, args=(x, y), daemon=True) for x, y in np.ndindex(block_x, block_y)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _system.pthread_barrier_destroy(memory)
        if errors:
            raise errors[0]


class _ForCPU(ast.NodeTransformer):
    """Puts what a thread is given in the place of what it has on a GPU."""

    def __init__(self, kernels, names):
        self._kernels, self._names = kernels, names

    def visit_Attribute(self, node):
        place = _PLACE.get(ast.unparse(node))
        return self.generic_visit(node) if place is None else _parsed(f"_place[{place}]")

    def visit_Call(self, node):
        called = ast.unparse(node.func)
        if called == "cuda.syncthreads":
            return _parsed("_synchronize(_barrier)")
        if called == "cuda.syncthreads_or":
            (value,) = map(self.visit, node.args)
            return _parsed(f"_synchronize_or(_place, _barrier, _votes, {ast.unparse(value)})")
        if called == "cuda.shared.array":
            return self._shared_array(ast.unparse(node.args[0]), ast.unparse(node.keywords[0].value))
        assert not called.startswith("cuda."), f"{called} has no counterpart on the CPU"
        node = self.generic_visit(node)
        if called in self._names:
            node.args[:0] = [ast.Name(more, ast.Load()) for more in _MORE]
        return node

    def _shared_array(self, shape, dtype):
        memory = f"_shared[{self._kernels.number_of_another_array()}]"
        if shape == "0":
            return _parsed(f"{memory}[: _place[{_PLACE['bytes of dynamic shared memory']}]].view({dtype})")
        return _parsed(f"{memory}.view({dtype})[: np.prod(np.array({shape}))].reshape({shape})")


def _parsed(expression):
    return ast.parse(expression, mode="eval").body
