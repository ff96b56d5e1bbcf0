"""What a coordinator works with: one set a process."""

from __future__ import annotations

from dataclasses import dataclass

import redis
from celery import Celery

from worker.contract import server
from worker.contract.batches import BatchStore
from worker.contract.files import FileStore
from worker.contract.liveness import Liveness
from worker.contract.openai.token_table import TokenTable
from worker.contract.records import store_of
from worker.contract.result_room import ResultRoom
from worker.contract.settings import Settings
from worker.contract.storage import Storage
from worker.contract.store import JobStore


@dataclass(frozen=True)
class Means:
    """All of it is safe to share between threads."""

    settings: Settings
    store: JobStore
    #: Where messages go, or None where records and messages are on one server.
    broker: redis.Redis | None
    liveness: Liveness
    result_room: ResultRoom
    files: FileStore
    batches: BatchStore
    token_table: TokenTable | None

    @classmethod
    def of(cls, app: Celery) -> Means:
        """Those of a worker. Raises SettingsError; ValueError where results are not on Redis."""
        settings = Settings.from_env()
        store = store_of(app)
        if store is None:
            raise ValueError("batches need a result backend on Redis")
        url, master = settings.broker_url, settings.sentinel_master
        same = server.same_server(url, settings.result_backend)
        broker = None if same else server.connect(url, sentinel_master=master)
        table = settings.token_table
        return cls(
            settings=settings,
            store=store,
            broker=broker,
            liveness=Liveness(store.client, settings.queue),
            result_room=ResultRoom(store.client, settings),
            files=FileStore(store.client, Storage(settings.files), settings.queue),
            batches=BatchStore(store.client, broker, settings.queue),
            token_table=TokenTable.load(table) if table else None,
        )
