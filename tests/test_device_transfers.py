"""What tasks hand on stays on the device between workers that speak UCX; a full device makes room on the host.

Between other workers it goes through the host.
"""

import sys
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import msgpack
import numpy as np
import pytest
from dask.utils import Dispatch
from distributed.protocol import dask_deserialize, dask_serialize, deserialize, serialize
from distributed.protocol.cuda import cuda_deserialize, cuda_serialize

from dbksvd_dask.encoding import AtomVectors, Gram
from dbksvd_dask.kernels.backend import on_device, to_host
from dbksvd_dask.kernels.chunk import EncodedChunk
from dbksvd_dask.kernels.costs import StageCosts
from dbksvd_dask.kernels.gram import Panel
from dbksvd_dask.kernels.transfer import Transferable

HAS_DASK_CUDA = find_spec("dask_cuda") is not None
UCX = "cuda", "dask", "pickle"
TCP = "dask", "pickle"


@pytest.fixture
def is_device_object(monkeypatch, cupy):
    """That of dask-cuda, once what tasks hand on is known to it."""
    if not HAS_DASK_CUDA:
        stand_in = ModuleType("dask_cuda.is_device_object")
        stand_in.is_device_object = dispatch = Dispatch(name="is_device_object")
        dispatch.register(object, lambda value: hasattr(value, "__cuda_array_interface__"))
        dispatch.register(tuple, lambda values: any(map(dispatch, values)))
        dispatch.register(list, lambda values: any(map(dispatch, values)))
        monkeypatch.setitem(sys.modules, "dask_cuda", ModuleType("dask_cuda"))
        monkeypatch.setitem(sys.modules, "dask_cuda.is_device_object", stand_in)
    if "cupy_stand_in" in sys.modules:  # its arrays travel as they are
        for serializers, deserializers in ((cuda_serialize, cuda_deserialize), (dask_serialize, dask_deserialize)):
            monkeypatch.setitem(serializers._lookup, cupy.ndarray, lambda array: ({}, [array]))
            monkeypatch.setitem(deserializers._lookup, cupy.ndarray, lambda header, frames: frames[0])
    monkeypatch.delitem(sys.modules, "dbksvd_dask.device_transfers", raising=False)
    yield import_module("dbksvd_dask.device_transfers").is_device_object
    sys.modules.pop("dbksvd_dask.device_transfers")


@pytest.fixture
def handed_on():
    """One of each kind, with arrays that `place` makes."""
    values = np.random.default_rng(0).standard_normal((6, 4), dtype=np.float32)
    indices = np.arange(24, dtype=np.int32).reshape(6, 4)
    near = np.empty((0, 2), np.int64)

    def make(place):
        return [
            EncodedChunk(place(indices), place(values), place(values * 2)),
            AtomVectors(place(values), StageCosts({"update": 2.0})),
            Gram((place(values[:, :2]), place(values[:3])), values[0], near, StageCosts({"gram": 1.0})),
            (Panel(place(values), place(values[0]), near), StageCosts({"gram": 1.0})),
        ]

    return make


def parts_of(value):
    """Its arrays and costs, in order."""
    if isinstance(value, Transferable):
        value = tuple(getattr(value, field.name) for field in fields(value))
    return [part for each in value for part in parts_of(each)] if isinstance(value, tuple) else [value]


def arrays_in(value):
    return [part for part in parts_of(value) if not isinstance(part, StageCosts)]


def assert_arrived(received, sent):
    assert type(received) is type(sent)
    if isinstance(sent, tuple):
        assert list(map(type, received)) == list(map(type, sent))
    for there, here in zip(parts_of(received), parts_of(sent), strict=True):
        assert on_device(there) == on_device(here)
        if isinstance(here, StageCosts):
            assert there.seconds == here.seconds
        else:
            np.testing.assert_array_equal(to_host(there), to_host(here))


def test_dask_cuda_knows_what_holds_memory_of_the_device(is_device_object, handed_on, cupy):
    assert [is_device_object(each) for each in handed_on(cupy.asarray)] == [True] * 4
    assert [is_device_object(each) for each in handed_on(np.asarray)] == [False] * 4
    assert is_device_object([cupy.zeros(3), cupy.zeros(3)])


@pytest.mark.usefixtures("is_device_object")
def test_over_ucx_arrays_stay_on_the_device(handed_on, cupy):
    for sent in handed_on(cupy.asarray):
        header, frames = serialize(sent, serializers=UCX, on_error="raise")
        header = msgpack.loads(msgpack.dumps(header), use_list=False)
        n_on_device = sum(map(on_device, arrays_in(sent)))
        assert header["serializer"] == "cuda"
        assert sum(hasattr(frame, "__cuda_array_interface__") for frame in frames) == n_on_device
        assert_arrived(deserialize(header, frames), sent)


@pytest.mark.usefixtures("is_device_object")
def test_over_tcp_they_go_through_the_host_and_back(handed_on, cupy):
    for sent in handed_on(cupy.asarray):
        header, frames = serialize(sent, serializers=TCP, on_error="raise")
        assert header["serializer"] == "pickle"
        assert not any(hasattr(frame, "__cuda_array_interface__") for frame in frames)
        assert_arrived(deserialize(header, frames), sent)


@pytest.mark.usefixtures("is_device_object")
@pytest.mark.parametrize("families", [UCX, TCP])
def test_what_is_on_the_host_is_pickled_as_without_a_gpu(handed_on, families):
    for sent in handed_on(np.asarray):
        header, frames = serialize(sent, serializers=families, on_error="raise")
        assert header["serializer"] == "pickle"
        odd = [bytearray(b"-" + bytes(frame)) for frame in frames]
        received = deserialize(header, [memoryview(frame)[1:] for frame in odd])
        assert_arrived(received, sent)
        if isinstance(sent, Transferable):
            assert all(array.flags.aligned for array in arrays_in(received))


def test_a_full_device_makes_room_on_the_host_and_a_full_host_on_the_disk(is_device_object, handed_on, cupy, tmp_path):
    if not HAS_DASK_CUDA:
        pytest.skip("dask_cuda is not installed: pip install 'dbksvd-dask[cuda13]'")
    from dask_cuda.device_host_file import DeviceHostFile

    held = DeviceHostFile(str(tmp_path), device_memory_limit=1_000, memory_limit=1_000)
    sent = {f"chunk-{i}": handed_on(cupy.asarray)[0] for i in range(8)}
    held.update(sent)
    assert min(map(len, (held.device, held.host, held.disk))) >= 1
    assert len(held.device) + len(held.host) + len(held.disk) == len(sent)
    for key, value in sent.items():
        assert is_device_object(held[key])
        assert_arrived(held[key], value)
