"""What a coordinator works with: one set a process."""

from __future__ import annotations

from dataclasses import dataclass

from celery import Celery

from worker.contract.batches import BatchStore
from worker.contract.files import FileStore
from worker.contract.liveness import Liveness
from worker.contract.openai.token_table import TokenTable
from worker.contract.records import store_of
from worker.contract.room import Room
from worker.contract.settings import Settings
from worker.contract.storage import Storage
from worker.contract.store import JobStore


@dataclass(frozen=True)
class Means:
    """All of it is safe to share between threads."""

    settings: Settings
    store: JobStore
    liveness: Liveness
    room: Room
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
        table = settings.token_table
        return cls(
            settings=settings,
            store=store,
            liveness=Liveness(store.client, settings.queue),
            room=Room(store.client, settings),
            files=FileStore(store.client, Storage(settings.files), settings.queue),
            batches=BatchStore(store.client, store.broker, settings.queue),
            token_table=TokenTable.load(table) if table else None,
        )
