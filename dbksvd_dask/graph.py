"""Tasks, and the one Dask graph that they make.

`dask.delayed` merges the graphs of its arguments at every call, which takes quadratic time: 40 s for the two thousand
tasks of an iteration with 64 inner batches. Here tasks know their arguments, and the graph is made once.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import getitem
from threading import BoundedSemaphore
from typing import Any
from uuid import uuid4

import dask
from dask._task_spec import Alias, List, Task, TaskRef, convert_legacy_task
from dask.base import get_scheduler
from dask.context import thread_state
from dask.core import get_dependencies
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from dbksvd_dask.shared_setting import SharedSetting

FAN_IN = 4
"""Parts that one task of a tree sum adds up."""

READS_AT_ONCE = 4
"""Chunks that one process reads at a time beside what it computes."""

SPAN_NAME = ("dbksvd",)
_SPAN = {"name": SPAN_NAME, "ids": (uuid4().hex,)}
"""All tasks of this process are one span: `distributed` begins one for each graph, and keeps them all for ever."""


@dataclass(frozen=True, eq=False)
class Lazy:
    """A call that is not made yet."""

    key: str
    function: Callable
    arguments: tuple
    """Other `Lazy`, `Inner` or `Delayed` ones, also in lists, or values."""
    home: str | None = None
    """Address of the worker that should make it."""


@dataclass(frozen=True, eq=False)
class Inner:
    """A call that is made inside the task that takes it: `inner_calls` makes them."""

    task: Task
    shared: Mapping[Any, Any]
    """Graph of what other tasks need as well."""
    home: str | None


def task(function: Callable, *arguments: Any, outputs: int | None = None, home: str | None = None) -> Any:
    """``function(*arguments)`` as a task; a tuple of tasks where it returns a tuple of `outputs`.

    `home`: see `homes`.

    Keys are unique, so that a cluster never takes a task of one iteration for that of another.

    Examples
    --------
    >>> from operator import add
    >>> three = task(add, 1, 2)
    >>> delayed_of(task(add, three, three))[0].compute()
    6
    """
    name = function.__name__.strip("_").replace("_", "-")
    # A caller may go on appending to a list that it has passed.
    arguments = tuple(argument.copy() if isinstance(argument, list) else argument for argument in arguments)
    call = Lazy(f"{name}-{uuid4().hex}", function, arguments, home)
    return call if outputs is None else tuple(task(getitem, call, i, home=home) for i in range(outputs))


def delayed_of(*calls: Lazy | Inner) -> list[Delayed]:
    """The calls as `Delayed` objects of one graph, for `dask.compute` and all else that takes such objects."""
    graph: dict[Any, Any] = {}
    home_of: dict[Any, list[str]] = {}

    def insert(made: Task, home: str | None) -> None:
        graph[made.key] = made
        if home is not None:
            home_of[made.key] = [home]

    waiting: list[Lazy] = []
    outermost: list[Inner] = []
    keys = [_refer(call, graph, waiting, outermost).key for call in calls]
    for inner in outermost:
        insert(inner.task, inner.home)
    while waiting:
        call = waiting.pop()
        if call.key not in graph:
            inside: list[Inner] = []
            arguments = [_refer(argument, graph, waiting, inside) for argument in call.arguments]
            outer = Task(call.key, call.function, *arguments)
            fused = Task.fuse(outer, *(inner.task for inner in inside), key=call.key) if inside else outer
            insert(fused, call.home)
    name = f"tasks-{uuid4().hex}"
    annotations: dict[str, Any] = {"workers": home_of.get, "allow_other_workers": lambda key: key in home_of or None}
    if "span" not in dask.get_annotations():
        annotations["span"] = _SPAN
    layers = {name: MaterializedLayer(graph, annotations=annotations)}
    whole = HighLevelGraph(layers, {name: set()})
    return [Delayed(key, whole, layer=name) for key in keys]


def _refer(argument: Any, graph: dict[Any, Any], waiting: list[Lazy], inside: list[Inner]) -> Any:
    """What stands for an argument in a task; what that needs comes to the graph, or to those that are to come there."""
    # A function of its own: one that calls itself from inside of another keeps the graph alive until a garbage
    # collection, and with it the futures of a whole batch.
    if isinstance(argument, Lazy):
        waiting.append(argument)
        return TaskRef(argument.key)
    if isinstance(argument, Inner):
        graph.update(argument.shared)
        inside.append(argument)
        return TaskRef(argument.task.key)
    if isinstance(argument, Delayed):
        if argument.key not in graph:
            graph.update(argument.dask)
        return TaskRef(argument.key)
    if isinstance(argument, list):
        return List(*(_refer(item, graph, waiting, inside) for item in argument))
    return argument


def inner_calls(*calls: Lazy) -> list[Inner]:
    """The calls, each together with all that no other of them needs, to be made inside the tasks that take them.

    So a chunk is read where and when it is needed: it does not travel between workers, and no idle thread reads ahead
    of a task that waits for something else. What several of the calls need stays a task of its own, made once.

    Examples
    --------
    >>> from operator import add, mul
    >>> six, seven = inner_calls(task(add, 1, task(add, 2, 3)), task(add, 3, 4))
    >>> (product,) = delayed_of(task(mul, six, seven))
    >>> product.compute(), len(product.dask)
    (42, 1)
    """
    graph = _nodes(delayed_of(*calls)[0].dask) if calls else {}
    needs = [_ancestors(graph, call.key) for call in calls]
    n_users = Counter(chain.from_iterable(needs))
    inner = []
    for call, needed in zip(calls, needs, strict=True):
        # Values and futures stay as they are.
        own = {key for key in needed if n_users[key] == 1 and isinstance(graph[key], Task | Alias)}
        shared = {key: graph[key] for key in needed if key not in own}
        inner.append(Inner(Task.fuse(*map(graph.get, own)), shared, call.home))
    return inner


def beside(calls: Sequence[Inner]) -> list[Inner]:
    """The calls, to be made beside what a worker computes: while one waits for a disk, its core is not idle.

    On a cluster a call that reads would hold the only thread of its worker, and nothing else be computed there.
    Without one they are made as they are.
    """
    return [
        replace(call, task=_beside(call.task), shared={key: _beside(node) for key, node in call.shared.items()})
        for call in calls
    ]


def _beside(node: Any) -> Any:
    if not isinstance(node, Task):  # values, futures and aliases stay as they are
        return node
    return Task(node.key, _call_beside, node.key, node.func, *node.args, **node.kwargs)


def _call_beside(key: Any, function: Callable, *arguments: Any, **named: Any) -> Any:
    if getattr(thread_state, "key", None) != key:  # no worker made this call a task of its own
        return function(*arguments, **named)
    from distributed import secede  # is there already, where a worker is

    secede()
    with _reads:
        return function(*arguments, **named)


_reads = BoundedSemaphore(READS_AT_ONCE)


def _nodes(graph: Mapping[Any, Any]) -> dict[Any, Any]:
    """The graph with Dask's older spellings of tasks, tuples and bare keys, as task nodes: only those can be fused."""
    # A future stays itself: as an alias it would not keep what it stands for alive.
    return {
        key: node if isinstance(node, TaskRef) else convert_legacy_task(key, node, graph) for key, node in graph.items()
    }


def _ancestors(graph: Mapping[Any, Any], key: Any) -> list[Any]:
    """The key itself, and whatever it needs."""
    found = {key: None}
    waiting = [key]
    while waiting:
        new = [needed for needed in get_dependencies(graph, waiting.pop()) if needed in graph and needed not in found]
        found.update(dict.fromkeys(new))
        waiting += new
    return list(found)


def without_size_warning() -> SharedSetting:
    """For graphs that hold a dictionary: on a cluster it travels with them, and `distributed` would warn of it."""
    return _no_size_warning


def _raise_threshold() -> Callable[[], Any]:
    setting = dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"})
    return lambda: setting.__exit__(None, None, None)


_no_size_warning = SharedSetting(_raise_threshold)


def homes(n_calls: int) -> list[str | None]:
    """Workers for calls on neighbouring chunks: neighbours come to the same one, as long as it lives.

    Left to itself a cluster deals them out to whoever is free; then half of what is computed with them and summed over
    them travels. None for each where there is no cluster.
    """
    client = active_client()
    slots = [] if client is None else [home for home, n_threads in client.nthreads().items() for _ in range(n_threads)]
    return [slots[i * len(slots) // n_calls] if slots else None for i in range(n_calls)]


def active_client() -> Any:
    """The `distributed.Client` that computes for this thread, None where Dask's own schedulers do."""
    scheduler = getattr(get_scheduler(), "__self__", None)
    return scheduler if hasattr(scheduler, "nthreads") else None


def tree_sum(parts: Sequence[Lazy]) -> Lazy:
    """Sum over chunks as a tree of fixed shape in chunk order: the same bits on any number of workers."""
    while len(parts) > 1:
        parts = [task(_sum_in_order, list(parts[i : i + FAN_IN])) for i in range(0, len(parts), FAN_IN)]
    return parts[0]


def _sum_in_order(parts: list[Any]) -> Any:
    total, *others = parts
    if others:
        total = total + others[0]
    for part in others[1:]:
        total += part  # what is a fresh array is added to in place
    return total
