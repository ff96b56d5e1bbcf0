"""The connections and settings of a coordinator: one set for each process."""

from __future__ import annotations

from dataclasses import dataclass

from celery import Celery

from worker.contract.settings import Settings
from worker.openai.token_table import TokenTable
from worker.store.celery_jobs import store_of
from worker.store.files import FileStore
from worker.store.jobs import JobStore
from worker.store.memory_limits import MemoryLimits
from worker.store.openai_batches import OpenAIBatchStore
from worker.store.storage import Storage
from worker.store.worker_registry import WorkerRegistry


@dataclass(frozen=True)
class Resources:
    """All of it is safe to share between threads."""

    settings: Settings
    store: JobStore
    liveness: WorkerRegistry
    room: MemoryLimits
    files: FileStore
    batches: OpenAIBatchStore
    token_table: TokenTable | None

    @classmethod
    def of(cls, app: Celery) -> Resources:
        """Those of a worker. Raises SettingsError; ValueError if results are not on Redis."""
        settings = Settings.from_env()
        store = store_of(app)
        if store is None:
            raise ValueError("batches need a result backend on Redis")
        table = settings.token_table
        return cls(
            settings=settings,
            store=store,
            liveness=WorkerRegistry(store.client, settings.queue),
            room=MemoryLimits(store.client, settings),
            files=FileStore(store.client, Storage(settings.files), settings.queue),
            batches=OpenAIBatchStore(store.client, store.broker, settings.queue),
            token_table=TokenTable.load(table) if table else None,
        )
