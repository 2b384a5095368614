"""Tasks, and the one Dask graph that they make.

`dask.delayed` merges the graphs of its arguments at every call, which takes quadratic time: 40 s for the two thousand
tasks of an iteration with 64 inner batches. Here tasks know their arguments, and the graph is made once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add, getitem
from typing import Any
from uuid import uuid4

from dask._task_spec import List, Task, TaskRef
from dask.base import get_scheduler
from dask.delayed import Delayed

FAN_IN = 4
"""Parts that one task of a tree sum adds up."""


@dataclass(frozen=True, eq=False)
class Lazy:
    """A call that is not made yet."""

    key: str
    function: Callable
    arguments: tuple
    """Other `Lazy` or `Delayed` ones, also in lists, or values."""


def task(function: Callable, *arguments: Any, outputs: int | None = None) -> Any:
    """``function(*arguments)`` as a task; a tuple of tasks where it returns a tuple of `outputs`.

    Keys are unique, so that a cluster never takes a task of one iteration for that of another.

    Examples
    --------
    >>> three = task(add, 1, 2)
    >>> delayed_of(task(add, three, three))[0].compute()
    6
    """
    name = function.__name__.strip("_").replace("_", "-")
    # A caller may go on appending to a list that it has passed.
    arguments = tuple(argument.copy() if isinstance(argument, list) else argument for argument in arguments)
    call = Lazy(f"{name}-{uuid4().hex}", function, arguments)
    return call if outputs is None else tuple(task(getitem, call, i) for i in range(outputs))


def delayed_of(*calls: Lazy) -> list[Delayed]:
    """The calls as `Delayed` objects of one graph, for `dask.compute` and all else that takes such objects."""
    graph: dict[str, Any] = {}
    waiting = list(calls)

    def refer(argument: Any) -> Any:
        if isinstance(argument, Lazy):
            waiting.append(argument)
            return TaskRef(argument.key)
        if isinstance(argument, Delayed):
            if argument.key not in graph:
                graph.update(argument.__dask_graph__())
            return TaskRef(argument.key)
        return List(*map(refer, argument)) if isinstance(argument, list) else argument

    while waiting:
        call = waiting.pop()
        if call.key not in graph:
            graph[call.key] = Task(call.key, call.function, *map(refer, call.arguments))
    return [Delayed(call.key, graph) for call in calls]


def share(value: Any) -> Any:
    """One copy of a value for all tasks of a graph: something that tasks take as an argument.

    On a cluster it is sent there once, beside the graph; inside the graph it would pass through the scheduler with it.
    """
    scatter = getattr(getattr(get_scheduler(), "__self__", None), "scatter", None)  # of a distributed.Client
    return task(_itself, value) if scatter is None else scatter(value, hash=False, broadcast=True)


def _itself(value: Any) -> Any:
    return value


def tree_sum(parts: Sequence[Lazy]) -> Lazy:
    """Sum over chunks as a tree of fixed shape in chunk order: the same bits on any number of workers."""
    while len(parts) > 1:
        parts = [task(_sum_in_order, list(parts[i : i + FAN_IN])) for i in range(0, len(parts), FAN_IN)]
    return parts[0]


def _sum_in_order(parts: list[Any]) -> Any:
    return reduce(add, parts)
