"""What Dask's scheduler leaves lying about: tasks that wait for workers which are gone, and records of what is over."""

from typing import Any

from distributed import Scheduler, SchedulerPlugin

from dbksvd_dask.graph import SPAN_NAME


class Housekeeping(SchedulerPlugin):
    """Has workers that join take tasks of dead ones, and lets go of groups of tasks that are over.

    A task that should be computed on one worker, and may be on others, waits for that one for ever where it becomes
    ready while there is no worker at all: of those that join the scheduler asks only whether they are that one. And the
    groups of all tasks that there ever were are kept with their span, some 30 kB an iteration.
    """

    name = "dbksvd-housekeeping"
    idempotent = True

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Before the scheduler looks which tasks the worker may have."""
        for task in scheduler.unrunnable:
            if task.loose_restrictions and not (task.worker_restrictions or set()) & scheduler.workers.keys():
                task.worker_restrictions = set()

    def update_graph(self, scheduler: Scheduler, **graph: Any) -> None:
        """When new tasks come."""
        spans = scheduler.extensions["spans"]
        for span in spans.spans_search_by_name.get(SPAN_NAME, ()):
            span.groups = {group for group in span.groups if scheduler.task_groups.get(group.name) is group}
