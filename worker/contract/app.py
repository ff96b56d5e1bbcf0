"""The Celery application: one configuration for producers and workers."""

from __future__ import annotations

import ssl
from typing import Any

from celery import Celery

from worker.contract import keys
from worker.contract.lanes import PRIORITY_STEPS
from worker.contract.settings import Settings, is_redis
from worker.metrics import logs


class Application(Celery):
    """Celery, with our result backend for results on Redis."""

    @property
    def backend_cls(self) -> str | None:
        """By name: it is loaded when the first result is stored or read.

        The setting is not enough: Celery prefers CELERY_RESULT_BACKEND of the environment to it.
        """
        url = self.conf.result_backend or ""
        return f"worker.result_backend:open_backend+{url}" if is_redis(url) else None


def make_app(settings: Settings) -> Celery:
    """A Celery application that talks to the broker and result backend of `settings`."""
    app = Application(
        "embedq",
        # By name: producers need the transport only when they connect.
        amqp="worker.transport.connection:AMQP",
        include=["worker.tasks", "worker.batches.task"],
    )
    if settings.log_format == "json":
        logs.use_json_in_worker()
    app.conf.update(configuration(settings))
    return app


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings; a comment gives the reason for each non-default value."""
    transport_options = {
        # For messages without renewals: those of stock workers.
        "visibility_timeout": 3600,
        "lease_timeout": settings.lease_seconds,
        "dead_letter_key": keys.dead_letters(settings.queue),
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 30,
        # kombu's, and one before them for the interactive lane.
        "priority_steps": list(PRIORITY_STEPS),
        # Bodies are JSON text already.
        "body_encoding": "utf-8",
        "socket_keepalive": True,
        "socket_timeout": 30,
        "health_check_interval": 10,
        "master_name": settings.sentinel_master,
    }
    return {
        "broker_url": settings.broker_url,
        "broker_transport_options": transport_options,
        # A worker outlives a restart of Redis, however long it takes.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "result_backend": settings.result_backend,
        "result_backend_transport_options": {
            "master_name": settings.sentinel_master,
            # In addition to lost connections: a server that is full, or no longer the primary.
            "additional_connection_errors": [
                *("redis.exceptions.OutOfMemoryError", "redis.exceptions.ReadOnlyError"),
            ],
        },
        # As for messages. Celery requires this value; the URL may override it.
        "redis_backend_use_ssl": (
            {"ssl_cert_reqs": ssl.CERT_REQUIRED}
            if settings.result_backend.startswith("rediss://")
            else None
        ),
        # Otherwise a connection lost while a result is stored would fail a successful job.
        "result_backend_always_retry": True,
        "result_expires": settings.result_ttl,
        # Never pickle: write access to Redis must not allow running code.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "task_default_queue": settings.queue,
        # A worker without `-Q` also coordinates batches.
        "task_queues": {
            name: {"exchange": name, "routing_key": name}
            for name in (settings.queue, keys.batch_queue(settings.queue))
        },
        # A job is acknowledged with its outcome, so that it outlives its worker.
        "task_acks_late": True,
        "task_acks_on_failure": True,
        "task_track_started": False,
        "worker_pool": "worker.pool:TaskPool",
        "worker_consumer": "worker.pool.consumer:JobConsumer",
        "worker_concurrency": 1,
        # No limit by count: the pool bounds the tokens that wait.
        "worker_prefetch_multiplier": 0,
        "worker_enable_prefetch_count_reduction": False,
        # Encoding goes on while the connection is away; its jobs stay leased.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }
