"""Select our transport in Celery, by the application's own connection class.

kombu selects a transport by the URL's scheme from a table that all applications of a process share.
It forgets a transport that was passed in addition to the URL for `redis+socket://`, and on a
failover. So the connection class itself selects the transport.
"""

from __future__ import annotations

import ssl
from contextvars import ContextVar
from functools import cached_property, partial
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import kombu
import redis
from celery.app import amqp
from celery.exceptions import Reject
from kombu.exceptions import OperationalError
from kombu.utils.collections import HashedSeq

from worker.store import celery_jobs
from worker.transport.follow_ups import following, holding
from worker.transport.leases import leases
from worker.transport.transport import SentinelTransport, Transport


class Connection(kombu.Connection):
    """A connection that uses our transport for Redis URLs.

    It also takes `unix://`, and verifies certificates by default.
    """

    _transports: ClassVar[dict[str, type[Transport]]] = {
        "redis": Transport,
        "rediss": Transport,
        "sentinel": SentinelTransport,
    }

    def __init__(self, hostname: Any = "localhost", *args: Any, **kwargs: Any) -> None:
        super().__init__(_kombu_url(hostname), *args, **kwargs)

    def __eqhash__(self) -> HashedSeq:
        # kombu shares pools between applications with equal connections.
        return HashedSeq(type(self), super().__eqhash__())

    def _init_params(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("transport") == "rediss" and not kwargs.get("ssl"):
            kwargs["ssl"] = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        super()._init_params(*args, **kwargs)

    def get_transport_cls(self) -> Any:
        return self._transports.get(self.transport_cls) or super().get_transport_cls()


#: Whether a task is requeued if a message that it publishes, to a link for example, cannot be sent
#: now. Else it fails, as with stock Celery; it has run, and may be one that must not run twice.
puts_back: ContextVar[bool] = ContextVar("embedq_puts_back", default=False)


class AMQP(amqp.AMQP):
    """For `Celery(amqp="worker.transport:AMQP")`."""

    Connection = BrokerConnection = Connection

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        leases.before_purge = partial(celery_jobs.purged, app)

    @cached_property
    def send_task_message(self) -> Any:
        """Celery: a function that sends the message of a task, or holds it for the running one."""
        send = self._create_task_sender()

        def send_or_hold(producer: Any, *args: Any, **options: Any) -> Any:
            if following.get() is None:
                return send(producer, *args, **options)
            with holding(producer.channel):
                return send(producer, *args, **options)

        return send_or_hold

    def _retry_publish(self, publish: Any, *args: Any, **kwargs: Any) -> Any:
        """Celery: requeue the running task if `puts_back` and a message cannot be sent now."""
        try:
            return super()._retry_publish(publish, *args, **kwargs)
        except (OperationalError, redis.RedisError) as error:
            if not puts_back.get():
                raise
            raise Reject(error, requeue=True) from error


def _kombu_url(url: Any) -> Any:
    """Kombu's form of `unix://PATH?db=N`; other URLs unchanged."""
    if not isinstance(url, str) or not url.startswith("unix://"):
        return url
    parts = urlsplit(url)
    database = (parse_qs(parts.query).get("db") or ["0"])[0]
    user = f"{parts.netloc.rsplit('@', 1)[0]}@" if "@" in parts.netloc else ""
    return f"redis+socket://{user}{parts.path}?virtual_host={database}"
