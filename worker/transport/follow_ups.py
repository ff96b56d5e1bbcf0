"""Messages that a task publishes: held until its outcome is stored, and sent in the same step.

Celery sends the links of a task before it stores the outcome. A worker that is suspended in
between, past its lease, would send them again when it continues, after another worker has run the
task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery.exceptions import Reject
from kombu.utils.json import dumps

from worker.transport.leases import Lease


class EndedElsewhere(Reject):
    """The task had ended before: its follow-ups have been sent."""


class Following:
    """The messages of one delivery, in the order in which they were published. One thread."""

    def __init__(self, task_id: str, lease: Lease) -> None:
        self.task_id = task_id
        self.lease = lease
        #: Full names of lists, each with its message.
        self.messages: list[tuple[str, bytes]] = []
        #: Whether the outcome is stored; messages published from then on are sent at once.
        self.stored = False


#: Messages of the running task for its own broker; None if they are sent at once.
following: ContextVar[Following | None] = ContextVar("embedq_following", default=None)


@contextmanager
def holding(channel: Any) -> Iterator[None]:
    """Hold the messages of a producer's channel in the block, if the task sends them later.

    Producers have channels of kombu's own. Messages for another broker are sent at once.
    """
    held = following.get()
    if held is None or held.stored or held.lease.store.broker != broker_of(channel):
        yield
        return

    def put(queue: str, message: Any, **_: Any) -> None:
        priority = channel._get_message_priority(message, reverse=False)  # noqa: SLF001
        key = channel.global_keyprefix + channel._q_for_pri(queue, priority)  # noqa: SLF001
        held.messages.append((key, dumps(message).encode()))

    channel._put = put  # noqa: SLF001
    try:
        yield
    finally:
        del channel._put  # noqa: SLF001


def broker_of(channel: Any) -> object:
    """The servers of a channel; compared, never used."""
    connection = channel.connection.client
    return tuple(sorted(connection.alt)) or connection.as_uri()
