"""Which GPUs the workers of `cluster.cuda` have, and how they talk to each other; checked before anything starts."""

import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

_MEMORY_POOLS = "rmm_pool_size", "rmm_managed_memory", "rmm_async"
_OVER_UCX = "enable_tcp_over_ucx", "enable_infiniband", "enable_nvlink"


def checked_gpus(n_workers: int | None, visible: Any) -> list[int | str]:
    """The GPUs that workers may have, one each: numbers, or identifiers that begin with GPU- or MIG-.

    Parameters
    ----------
    n_workers : int or None
        Those that begin at once.
    visible : str, iterable of int and str, or None
        What the caller says for the environment variable CUDA_VISIBLE_DEVICES, which counts where he says nothing.
    """
    n_gpus = _count_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    if visible is None:
        visible = range(n_gpus)
    if not isinstance(visible, Iterable):
        raise TypeError(f"CUDA_VISIBLE_DEVICES={visible!r} must be a list, as [0, 1], or a text, as '0,1'")
    gpus = [_parsed(name) for name in (visible.split(",") if isinstance(visible, str) else visible)]
    if not gpus:
        raise ValueError(f"CUDA_VISIBLE_DEVICES={visible!r} names no GPU")
    for gpu in gpus:
        if gpus.count(gpu) > 1:
            raise ValueError(
                f"CUDA_VISIBLE_DEVICES names GPU {gpu} more than once, but a GPU has one worker here; start another "
                "one on it by: dask cuda worker"
            )
        if isinstance(gpu, int) and not 0 <= gpu < n_gpus:
            raise ValueError(
                f"CUDA_VISIBLE_DEVICES names GPU {gpu}, but this machine has {n_gpus}, from 0 on: nvidia-smi lists them"
            )
    if n_workers is not None and n_workers > len(gpus):
        raise ValueError(f"n_workers={n_workers} exceeds the number of GPUs, {len(gpus)}: a GPU has one worker")
    return gpus


def _count_gpus() -> int:
    import pynvml  # comes with dask-cuda

    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError as error:
        raise OSError(
            f"the NVIDIA driver does not tell its GPUs ({error}): nvidia-smi has to list them here"
        ) from error


def _parsed(name: Any) -> int | str:
    text = str(name).strip()
    if text.removeprefix("-").isdecimal():
        return int(text)
    if not text.startswith(("GPU-", "MIG-")):
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES names GPU {text!r}, which is neither a number nor an identifier: nvidia-smi -L "
            "lists both; and an empty text hides all GPUs"
        )
    return text


def checked_protocol(protocol: str | None, n_workers: int, security: Any, options: Mapping[str, Any]) -> str | None:
    """What the workers speak: UCX, where several can and nobody wants something else; None for Dask's own choice."""
    installed = find_spec("distributed_ucxx") is not None
    if protocol is None:
        if any(options.get(name) for name in _OVER_UCX) or (installed and n_workers > 1 and not security):
            protocol = "ucx"
        else:
            return None
    if protocol.startswith("ucx"):
        if not installed:
            raise ImportError(
                "UCX needs distributed-ucxx: pip install distributed-ucxx-cu13, or -cu12, as the extra of this package"
            )
        if security:
            raise ValueError("security: UCX does not encrypt; certificates are for protocol='tls'")
    return protocol


def wants_pool(options: Mapping[str, Any]) -> bool:
    """Whether the workers are to take their memory from RMM."""
    return any(options.get(name) for name in _MEMORY_POOLS)
