"""The engine's room as a bound on what kombu's own transport fetches."""

from __future__ import annotations

from types import MethodType
from typing import Any

from celery import bootsteps

from worker.transport import admission


class StockAdmission(bootsteps.StartStopStep):
    """Lets a stock channel fetch only while the engine has room, as our own channels do.

    Without it, and with no limit by count, a worker would take the whole queue into its memory. A
    step of Celery's consumer; runs anew for the channel of each connection.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Celery: the channel has been made and its consumer is about to run."""
        qos = consumer.task_consumer.channel.qos
        can_consume = type(qos).can_consume

        def with_room(self: Any) -> bool:
            room = admission.room
            return (room is None or room() > 0) and bool(can_consume(self))

        qos.can_consume = MethodType(with_room, qos)
