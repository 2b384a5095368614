"""Dask settings that a fit wants, and what the user has set in their place."""

from collections.abc import Mapping
from typing import Any

import dask
import distributed  # noqa: F401  # which brings the defaults of its settings

SETTINGS: dict[str, Any] = {
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.target": 0.6,
    "distributed.worker.memory.spill": 0.7,
    "distributed.worker.memory.pause": 0.85,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.comm.timeouts.connect": "20s",
    "distributed.comm.timeouts.tcp": "20s",
    "distributed.scheduler.worker-ttl": "60s",
    "distributed.scheduler.no-workers-timeout": "5 minutes",
    "distributed.admin.low-level-log-length": 100,
    "distributed.admin.system-monitor.log-length": 60,
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.admin.tick.interval": "500ms",
    "distributed.diagnostics.computations.max-history": 1,
}
"""Dask settings of the clusters made here.

* No profiler, which takes up to 5 % of a fit; and processes that wait wake up twice a second rather than fifty times,
  which takes 1 % of a core each.
* Parts of a worker's memory limit: rows and codes go to its disk from `target` and `spill` on; from `pause` on it takes
  no more tasks, which leaves what they hold for a moment more room than Dask does; at `terminate` it is started anew.
* A host that is cut off is noticed within seconds, and what it held is computed elsewhere.
* A fit ends with an error once there have been no workers for `no-workers-timeout`.
* Logs and diagnostics of a few iterations, rather than of hundreds: so a long fit does not grow the scheduler.

What you have set yourself wins over these: in Dask's configuration files and environment variables, and by
``dask.config.set`` as far as it differs from Dask's own defaults. What the argument `settings` of a function here says
wins over all.
"""

SLURM_SETTINGS: dict[str, Any] = SETTINGS | {"distributed.scheduler.no-workers-timeout": "1 hour"}
"""`SETTINGS` for `slurm`, where workers may have to wait in a queue."""


def environment(settings: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The settings as environment variables, for schedulers and workers that are not started from here.

    Parameters
    ----------
    settings : mapping, optional
        As for `local`.

    Examples
    --------
    >>> environment({"distributed.worker.memory.pause": 0.9})["DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE"]
    '0.9'
    """
    return variables(chosen(SETTINGS, settings))


def variables(settings: Mapping[str, Any]) -> dict[str, str]:
    """Environment variables that Dask reads as these settings."""
    return {f"DASK_{key.replace('.', '__').replace('-', '_').upper()}": str(value) for key, value in settings.items()}


def chosen(ours: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Each of our settings, or what the user wants in its place, and what else he wants."""
    if not isinstance(theirs, Mapping | None):
        raise TypeError(f"settings={theirs!r} must be a mapping of names of Dask's settings to values")
    theirs = dict(theirs or {})
    for key in theirs:
        if not isinstance(key, str) or isinstance(theirs[key], Mapping):
            raise TypeError(f"settings names {key!r}: write names in full, as 'distributed.worker.memory.pause'")
        if dask.config.get(key, _UNKNOWN) is _UNKNOWN:
            raise ValueError(f"settings names {key!r}, which is no setting of Dask: see its configuration reference")
    defaults, written = dask.config.merge(*dask.config.defaults), dask.config.collect()

    def is_set(key: str) -> bool:
        changed = dask.config.get(key) != dask.config.get(key, _UNKNOWN, config=defaults)
        return changed or dask.config.get(key, _UNKNOWN, config=written) is not _UNKNOWN

    return {key: dask.config.get(key) if is_set(key) else value for key, value in ours.items()} | theirs


_UNKNOWN = object()
