"""Lost workers, where Dask itself gives up: what they computed is computed again, a few times."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from time import monotonic, sleep, time
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

from dbksvd_dask.graph import active_client

MOST_REPLAYS = 3
"""How often something is computed again that failed because workers were lost."""

SECONDS_TO_RECONNECT = 5
"""How long a broken connection to the scheduler may take to come back."""

SECONDS_WITHOUT_WORKERS = 15
"""After so long without any worker a warning says that the computation waits for one."""

_SECONDS_FOR_LOGS = 5
_SECONDS_BETWEEN_CLOCKS = 5  # events have the scheduler's time
_MOST_LINES = 12
_KEPT = "The model keeps the iterations before; where there is a checkpoint, DBKSVD.resume goes on from it."
_TELLING = re.compile(
    r"memory budget|killed by signal|exited with|died|marked as failed|heartbeat|scattered data|deserialization"
)

T = TypeVar("T")

_kept: WeakSet = WeakSet()  # clients whose scheduler has the plugin

logger = logging.getLogger(__name__)


class WorkersLost(RuntimeError):
    """Workers, or the scheduler, were lost more often than a computation can be repeated."""


def replayed(attempt: Callable[[], T], what: str) -> T:
    """What `attempt` returns, called again where Dask could not make up for lost workers.

    Dask computes again what a dead worker held, but gives up on a task that was on its way on four workers that died
    (`distributed.scheduler.allowed-failures`), on data that was sent to workers rather than computed, and when the
    cluster is restarted. Without a cluster this is a plain call.

    Parameters
    ----------
    attempt : callable
        Makes its tasks anew at every call, and computes them; needs nothing that an earlier call left on the cluster.
    what : str
        What it computes, for warnings and errors: "iteration 12".

    Raises
    ------
    WorkersLost
        If it fails for lost workers once more after `MOST_REPLAYS` replays, if no worker came within the cluster's
        `distributed.scheduler.no-workers-timeout`, or if the connection to the scheduler is lost. Any other error is
        passed on as it is, at once.

    Examples
    --------
    >>> replayed(lambda: 6 * 7, "the answer")
    42
    """
    client = active_client()
    if client is None:
        return attempt()
    _keep_house(client)
    start, n_replays = time(), 0
    while True:
        try:
            with _warning_without_workers(client, what):
                return attempt()
        except Exception as error:  # released here: it holds on to what the attempt held on the cluster
            if not _is_loss(error, client):
                raise
            if not _is_connected(client):
                raise WorkersLost(_lost_scheduler(client, what)) from error
            if _waited_in_vain(error) or n_replays == MOST_REPLAYS:
                raise WorkersLost(_lost_workers(client, what, n_replays, start, error)) from error
            n_replays += 1
            logger.warning("%s begins again (%d of %d at most): %s", what, n_replays, MOST_REPLAYS, _in_short(error))


def check_connected(client: Any, what: str) -> None:
    """Refuse to compute without the client that the rows are read with.

    Raises
    ------
    WorkersLost
        If it was closed, or lost its scheduler.
    """
    if client is not None and not _is_connected(client):
        raise WorkersLost(_lost_scheduler(client, what))


def _keep_house(client: Any) -> None:
    if client not in _kept:
        from dbksvd_dask.housekeeping import Housekeeping  # which needs `distributed`

        with suppress(Exception):  # no connection: the attempt itself will fail
            client.register_plugin(Housekeeping())
            _kept.add(client)


def _is_loss(error: Exception, client: Any) -> bool:
    """Whether it was raised by Dask because a worker or the scheduler is gone; a task may raise anything else."""
    # Where there is no cluster, `distributed` need not be imported.
    from distributed.client import ClosedClientError, FutureCancelledError, FuturesCancelledError
    from distributed.scheduler import KilledWorker, NoValidWorkerError, NoWorkerError

    of_client = FutureCancelledError, FuturesCancelledError, ClosedClientError
    losses = KilledWorker, NoWorkerError, NoValidWorkerError, *of_client
    return isinstance(error, losses) or (isinstance(error, OSError) and client.status != "running")


def _waited_in_vain(error: Exception) -> bool:
    """Whether the scheduler has waited for workers as long as it was told to; to replay would be to wait once more."""
    from distributed.scheduler import NoWorkerError

    return isinstance(error, NoWorkerError)


def _is_connected(client: Any) -> bool:
    """Whether the scheduler answers the client, also after a break."""
    deadline = monotonic() + SECONDS_TO_RECONNECT
    while client.status == "connecting" and monotonic() < deadline:
        sleep(0.05)
    return client.status == "running"


@contextmanager
def _warning_without_workers(client: Any, what: str) -> Generator[None]:
    """Dask waits for ever for workers that do not come: let it be known."""
    ended = Event()

    def watch() -> None:
        pause = SECONDS_WITHOUT_WORKERS
        while not ended.wait(pause):
            with suppress(Exception):  # no connection: the attempt itself will fail
                if not client.nthreads():
                    logger.warning(
                        "%s waits: the cluster has no worker. Start some, or interrupt; with a "
                        "distributed.scheduler.no-workers-timeout the scheduler would not wait for ever.",
                        what,
                    )
                    pause *= 2

    Thread(target=watch, name="watch-workers", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _lost_scheduler(client: Any, what: str) -> str:
    address = "" if client.scheduler is None else f" at {client.scheduler.address}"
    return (
        f"{what} failed, because the connection to the Dask scheduler{address} was lost: the scheduler died, was "
        f"closed, or the network failed. Start a cluster and a client anew. {_KEPT}"
    )


class _Death(NamedTuple):
    """A worker that the scheduler lost."""

    worker: str
    tasks: list[str]
    """Keys of what it was computing."""


def _lost_workers(client: Any, what: str, n_replays: int, start: float, error: Exception) -> str:
    deaths = _deaths(client, start)
    memory = [event["rss"] for event in _events(client, "worker-restart-memory", start)]
    lines = _telling_lines(client)
    times = f"failed {n_replays + 1} times" if n_replays else "failed"
    # Tasks that failed are named already, and may be many.
    shown = ([line for line in lines if "marked as failed" not in line] or lines)[-_MOST_LINES:]
    logs = "".join(f"\n    {line}" for line in ["The cluster logged last:", *shown] if shown)
    return (
        f"{what} {times}, because workers were lost. The last time: {_in_short(error)}. {_told(deaths)}"
        f"{_cause(error, memory, lines)}{_KEPT}{logs}"
    )


def _deaths(client: Any, start: float) -> list[_Death]:
    events = _events(client, "all", start)
    lost = [event for event in events if event["action"] == "remove-worker" and not event["expected"]]
    return [_Death(event["worker"], sorted(map(str, event["processing-tasks"]))) for event in lost]


def _events(client: Any, topic: str, start: float) -> list[dict[str, Any]]:
    with suppress(Exception):  # a scheduler that does not tell is no reason to hide the error itself
        events = client.sync(client.scheduler.events, topic=topic, callback_timeout=_SECONDS_FOR_LOGS)
        return [event for when, event in events if when >= start - _SECONDS_BETWEEN_CLOCKS]
    return []


def _told(deaths: list[_Death]) -> str:
    if not deaths:
        return ""
    from distributed.utils import key_split

    names = Counter(key_split(key) for death in deaths for key in death.tasks)
    tasks = ", ".join(f"{name} ({count})" for name, count in names.most_common())
    addresses = [death.worker for death in deaths]
    shown = ", ".join(addresses[:6]) + (", …" if len(addresses) > 6 else "")
    return f"Lost: {len(deaths)} workers ({shown})" + (f", which were computing {tasks}. " if tasks else ". ")


def _cause(error: Exception, memory: list[int], lines: list[str]) -> str:
    """Why workers died as far as can be told, and what to do."""
    if "lost dependencies" in str(error):
        return (
            "What it needs is not on the cluster: embeddings that were persisted there before workers were lost or "
            "restarted have to be persisted anew, and both sides have to have the same packages. "
        )
    if memory:
        why = (
            f"{len(memory)} of them were out of memory: their nanny ended them, at up to {max(memory) / 1e9:.2f} GB "
            "each, for exceeding their limit"
        )
    elif any("killed by signal 9" in line for line in lines):
        why = "They were killed from outside, by the operating system for want of memory most likely"
    else:
        why = "Want of memory is the most likely cause"
    return (
        f"{why}. Give each worker more memory (memory_limit), or let it need less: a smaller batch_size, fewer "
        "threads per worker. "
    )


def _telling_lines(client: Any) -> list[str]:
    """The lines of the scheduler's and the nannies' logs that tell of lost workers."""
    logs: list[Any] = []
    with suppress(Exception):
        logs += client.sync(client.scheduler.logs, callback_timeout=_SECONDS_FOR_LOGS)
    with suppress(Exception):
        client.wait_for_workers(1, timeout=_SECONDS_FOR_LOGS)  # the nannies of the living tell of the dead
        of_nannies = client.sync(client.scheduler.worker_logs, nanny=True, callback_timeout=_SECONDS_FOR_LOGS)
        logs += [line for log in of_nannies.values() for line in log]
    return sorted({line for _, line in logs if _TELLING.search(line)})  # they begin with the time


def _in_short(error: Exception) -> str:
    """Its first sentence; of a cancelled future also why."""
    return f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0].rstrip(".")
