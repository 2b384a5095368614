"""Whether the workers of a cluster compute as this process does."""

import warnings
from importlib.metadata import version
from typing import Any

from distributed import Client

from dbksvd_dask.fit_state import SAME_BITS, this_cpu


def check_versions(client: Client) -> None:
    """Refuse workers with another version of this package, or none, and warn of other versions of what it needs."""
    here = version("dbksvd-dask")
    for worker, there in client.run(version, "dbksvd-dask", on_error="return").items():
        if there != here:
            found = f"dbksvd_dask {there}" if isinstance(there, str) else "no dbksvd_dask"
            raise RuntimeError(f"worker {worker} has {found}: pip install dbksvd-dask=={here} there, as here")
    for package in SAME_BITS:
        here = version(package)
        others = {there for there in client.run(version, package, on_error="return").values() if there != here}
        if others:
            _warn(f"workers have {package} {_listed(others)}, and this process has {here}")
    processors = set(client.run(this_cpu, on_error="return").values())
    if len(processors) > 1:
        _warn(f"workers have different processors, {_listed(processors)}")


def _warn(difference: str) -> None:
    warnings.warn(f"{difference}: results may differ in their last bits", stacklevel=4)  # where `connect` is called


def _listed(found: set[Any]) -> str:
    return ", ".join(sorted(map(str, found)))
