"""What a model has learned, and what it takes to go on: one object, which a checkpoint holds."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from numbers import Integral
from typing import Any

import llvmlite.binding
import numpy as np
import xarray as xr

from dbksvd_dask.history import Iteration, history_dataset
from dbksvd_dask.training import State

SAME_BITS = ("numba", "numpy", "scipy")
"""Packages that compute; another version of one of them may compute other last bits."""

BESIDES = ("callbacks", "checkpoint", "checkpoint_every")
"""Parameters that the atoms do not depend on."""


@dataclass
class FitState:
    """A fit between two iterations."""

    parameters: dict[str, Any]
    """Those that it was begun with, as JSON has them; of arrays only that they are arrays."""
    seed: int
    """What all random choices follow from."""
    mean: np.ndarray | None
    """(d,) floats taken from the samples."""
    n_fixed: int
    """So many first atoms stay as they are."""
    group_sizes: tuple[int, ...]
    """Atoms of each Matryoshka group; empty where there are none."""
    state: State | None = None
    """What the next iteration begins with; None until there are atoms."""
    iterations: list[Iteration] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    fitted_at: str | None = None
    """When the last iteration ended."""
    device: str | None = None
    """What it was begun on, and with which libraries, where that is a GPU: others have other last bits."""

    def go_on_from(self, state: State, iteration: Iteration) -> None:
        """Note that an iteration has ended."""
        self.state = state
        self.iterations.append(iteration)
        self.fitted_at = datetime.now(UTC).isoformat(timespec="seconds")

    @property
    def history(self) -> xr.Dataset:
        """What happened at each iteration."""
        return history_dataset(list(self.iterations))  # a copy: a fit in the background may add to them meanwhile

    def provenance(self, stopped_by: str | None) -> dict[str, Any]:
        """Where the atoms come from, as JSON has it."""
        assert self.state is not None
        return {
            "parameters": self.parameters,
            "seed": self.seed,
            "n_iter": len(self.iterations),
            "n_samples_seen": self.state.n_samples_seen,
            "stopped_by": stopped_by,
            "fitted_at": self.fitted_at,
            "cpu": this_cpu(),
            "device": self.device,
            "versions": versions(),
        }


def plain_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those parameters of a model that its atoms follow from, as JSON has them; of an array only that it is one."""
    return {name: plain(value) for name, value in parameters.items() if name not in BESIDES}


def plain(value: Any) -> str | int | float | bool | list[int] | None:
    """The value of a parameter as JSON has it."""
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu":
        return value.tolist()
    if isinstance(value, list | tuple) and all(isinstance(item, Integral) for item in value):
        return [int(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, type | np.dtype):
        return np.dtype(value).name
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def this_cpu() -> str:
    """Which instructions are compiled for here: others have other last bits."""
    return f"{platform.machine()} {llvmlite.binding.get_host_cpu_name()}"


def versions() -> dict[str, str]:
    """Of this package and of those that compute."""
    return {name: version(name) for name in ("dbksvd-dask", "dask", *SAME_BITS)}
