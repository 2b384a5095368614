"""How what tasks hand to each other is moved where its arrays are on a GPU, for the workers of dask-cuda.

Those of `cluster.cuda` import this; others do by ``dask cuda worker --pre-import dbksvd_dask.device_transfers``. Then

* over UCX it goes from device to device, by NVLink where there is one;
* dask-cuda knows it for memory of the device, and moves it to the host when the device is full.

Over TCP, from the device to the host and back, and wherever nothing is on a device, it is pickled as on any cluster:
what comes back to a device is in the memory that CuPy manages there.
"""

from dataclasses import fields
from typing import Any

from dask_cuda.is_device_object import is_device_object
from distributed.protocol import deserialize, pickle, serialize
from distributed.protocol.cuda import cuda_deserialize, cuda_serialize

from dbksvd_dask.kernels.transfer import Transferable

_FAMILIES = "cuda", "dask", "pickle"


@is_device_object.register(Transferable)
def on_some_device(handed_on: Transferable) -> bool:
    """Whether any of its arrays is on a device."""
    return any(map(is_device_object, _parts(handed_on)))


@cuda_serialize.register(Transferable)
@cuda_serialize.register(tuple)
def sent(handed_on: Transferable | tuple) -> tuple[dict[str, Any], list[Any]]:
    """Its arrays as frames, those on a device as memory there; and what the receiver has to know.

    Of tuples, Dask itself knows those that begin with an array.
    """
    known = isinstance(handed_on, Transferable) or type(handed_on) is tuple or hasattr(handed_on, "_make")
    if not known or not is_device_object(handed_on):
        raise NotImplementedError  # by which Dask asks the next family: pickle
    header, frames = serialize(_parts(handed_on), serializers=_FAMILIES, on_error="raise", iterate_collection=True)
    return {"class": pickle.dumps(type(handed_on)), "parts": header}, frames


@cuda_deserialize.register(Transferable)
@cuda_deserialize.register(tuple)
def received(header: dict[str, Any], frames: list[Any]) -> Transferable | tuple:
    """What was sent, with its arrays where they were."""
    cls, parts = pickle.loads(header["class"]), deserialize(header["parts"], frames)
    return tuple(parts) if cls is tuple else cls(*parts)


def _parts(handed_on: Transferable | tuple) -> list[Any]:
    if isinstance(handed_on, tuple):
        return list(handed_on)
    return [getattr(handed_on, field.name) for field in fields(handed_on)]
