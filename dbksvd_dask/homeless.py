"""Tasks whose workers have all died, on the scheduler: whoever comes next may have them."""

from distributed import Scheduler, SchedulerPlugin


class Homeless(SchedulerPlugin):
    """Has workers that join take tasks which wait for workers that are gone.

    A task that should be computed on one worker, and may be on others, waits for that one for ever where it becomes
    ready while there is no worker at all: of those that join the scheduler asks only whether they are that one.
    """

    name = "dbksvd-homeless"
    idempotent = True

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Before the scheduler looks which tasks the worker may have."""
        for task in scheduler.unrunnable:
            if task.loose_restrictions and not (task.worker_restrictions or set()) & scheduler.workers.keys():
                task.worker_restrictions = set()
