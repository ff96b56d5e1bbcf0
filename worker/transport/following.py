"""Messages that a task sends on: held until its outcome is stored, and sent in the same step.

Celery sends the links of a task before it stores the outcome. A worker that is stopped in between,
past its lease, would send them a second time when it goes on, after the worker that had the task
meanwhile.
"""

from __future__ import annotations

from contextvars import ContextVar

from celery.exceptions import Reject

from worker.transport.leases import Lease


class EndedElsewhere(Reject):
    """The task had ended before: what follows it has been sent."""


class Following:
    """The messages of one delivery, in the order in which they were published. One thread."""

    def __init__(self, task_id: str, lease: Lease) -> None:
        self.task_id = task_id
        self.lease = lease
        #: Full names of lists, and the message that goes on each.
        self.messages: list[tuple[str, bytes]] = []
        #: Whether the outcome is stored; what is published from then on is sent at once.
        self.stored = False


#: What the running task publishes on its own broker, None if that is sent at once.
following: ContextVar[Following | None] = ContextVar("embedq_following", default=None)
