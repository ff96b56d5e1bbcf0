"""The state that the routes share: records, workers, waits, limits; one set an application."""

from __future__ import annotations

from dataclasses import dataclass

import redis
from flask import Flask, Request, current_app
from redis.backoff import NoBackoff
from redis.retry import Retry

from api.job_watcher import JobWatcher
from api.metrics import Metrics
from api.revocations import Revocations
from worker.contract.settings import Settings
from worker.openai.token_table import TokenTable
from worker.store import server
from worker.store.eviction import EvictionCheck
from worker.store.files import FileStore
from worker.store.jobs import JobStore
from worker.store.memory_limits import MemoryLimits
from worker.store.openai_batches import OpenAIBatchStore
from worker.store.quotas import Quotas
from worker.store.storage import Storage
from worker.store.worker_registry import WorkerRegistry

EXTENSION = "embedq"

#: Seconds. If Redis hangs for longer, the request is answered 503.
_CONNECT_TIMEOUT = 1.0
_ANSWER_TIMEOUT = 1.5
_PROBE_TIMEOUT = 1.0
#: Connections of one process; each is held for one command.
_CONNECTIONS = 64


@dataclass
class Backend:
    """Connects on first use, so that an application can be made before Redis is there."""

    settings: Settings
    store: JobStore
    #: For readiness, with a shorter timeout.
    probe: redis.Redis
    liveness: WorkerRegistry
    room: MemoryLimits
    waiting: JobWatcher
    revocations: Revocations
    metrics: Metrics
    #: Decodes token ids; None without a table.
    token_table: TokenTable | None
    quotas: Quotas
    files: FileStore
    batches: OpenAIBatchStore
    eviction: EvictionCheck
    #: The path under which the routes are registered in another application, '' at its root; set
    #: once, when they are.
    prefix: str = ""

    @classmethod
    def of(cls, settings: Settings) -> Backend:
        client = _connect(settings, settings.result_backend, _ANSWER_TIMEOUT)
        one_server = server.same_server(settings.broker_url, settings.result_backend)
        broker = None if one_server else _connect(settings, settings.broker_url, _ANSWER_TIMEOUT)
        store = JobStore(client, settings.queue, result_ttl=settings.result_ttl, broker=broker)
        liveness = WorkerRegistry(client, settings.queue)
        waiting = JobWatcher(client)
        return cls(
            settings=settings,
            store=store,
            probe=_connect(settings, settings.result_backend, _PROBE_TIMEOUT),
            liveness=liveness,
            room=MemoryLimits(client, settings),
            waiting=waiting,
            revocations=Revocations(settings),
            metrics=Metrics(store, liveness, waiting),
            token_table=TokenTable.load(settings.token_table) if settings.token_table else None,
            quotas=Quotas(client, settings.queue),
            files=FileStore(
                client,
                Storage(settings.files),
                settings.queue,
                max_bytes=settings.max_files_bytes or 0,
            ),
            batches=OpenAIBatchStore(client, store.broker, settings.queue),
            eviction=EvictionCheck((client, store.broker)),
        )

    def root(self, request: Request) -> str:
        """The beginning of all paths, as callers see them; '' at the server's root."""
        return request.script_root + self.prefix

    def path(self, request: Request) -> str:
        """The path of a request, as in the OpenAPI document."""
        return request.path.removeprefix(self.prefix)

    def route(self, request: Request) -> str:
        """The rule that a request matches, or `unknown`."""
        rule = request.url_rule
        return "unknown" if rule is None else rule.rule.removeprefix(self.prefix)

    def close(self) -> None:
        """End the threads and the connections.

        For tests and programs that embed the application; a server's process may just end.
        """
        self.eviction.close()
        self.waiting.close()
        self.revocations.close()
        for client in (self.store.client, self.probe, self.store.broker):
            client.close()


def backend() -> Backend:
    """The backend of the current application."""
    return backend_of(current_app)


def backend_of(app: Flask) -> Backend:
    found: Backend = app.extensions[EXTENSION]
    return found


def _connect(settings: Settings, url: str, timeout: float) -> redis.Redis:
    client = server.connect(
        url,
        sentinel_master=settings.sentinel_master,
        socket_connect_timeout=_CONNECT_TIMEOUT,
        socket_timeout=timeout,
        # Retry once if a pooled connection died unseen; do not retry if the server hangs.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
    return server.share(client, _CONNECTIONS, patience=timeout)
