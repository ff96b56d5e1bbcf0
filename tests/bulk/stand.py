"""Batches on a real Valkey: the coordinator in the test's own process, the test as worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import redis
from numpy.typing import NDArray

from tests.api_stand import MODEL, ApiStand, api_stand
from worker.batches.coordinator import Coordinator
from worker.batches.resources import Resources
from worker.contract.errors import JobFailed
from worker.contract.lanes import lists_of
from worker.contract.outcomes import TextError
from worker.store.files import BATCH, FileRecord, object_name
from worker.store.files import new_id as new_file_id
from worker.store.openai_batch import COMPLETION_SECONDS, OpenAIBatch, new_id


def line(custom_id: str = "a", **body: Any) -> dict[str, Any]:
    """A line of a file of requests, as a mapping."""
    wanted = {"model": MODEL.name, "input": f"text of {custom_id}"} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": wanted}


def jsonl(lines: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(one) + b"\n" for one in lines)


def vectors_of(texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors that the test's worker returns, (n, 4): they differ by the texts' bytes."""
    return np.array(
        [[len(text), sum(text.encode()), text.count("a"), 1] for text in texts], np.float32
    )


@dataclass
class PlayedWorker:
    """Takes jobs from the queue on a thread and completes them, until its stand ends."""

    api: ApiStand
    #: Texts that were encoded, in order.
    encoded: list[str] = field(default_factory=list)
    #: Called with the texts of each job; may raise JobFailed, or return errors by index.
    judge: Callable[[list[str]], Mapping[int, str]] = lambda _: {}

    def run(self, stopping: threading.Event) -> None:
        with redis.Redis.from_url(self.api.settings.broker_url) as client:
            while not stopping.is_set():
                taken: Any = client.brpop(lists_of(self.api.settings.queue), timeout=0.1)
                if taken is not None:
                    self._end(orjson.loads(taken[1]))

    def _end(self, message: Mapping[str, Any]) -> None:
        job_id = message["headers"]["id"]
        [texts], kwargs, _ = orjson.loads(message["body"])
        try:
            faults = self.judge(texts)
        except JobFailed as failure:
            self.api.fail(job_id, failure.code, failure.message)
            return
        self.encoded += texts
        counts = [len(text) for text in texts]
        self.api.succeed(
            job_id,
            vectors_of(texts),
            encoding_format=kwargs["encoding_format"],
            errors=tuple(TextError(at, code, "it cannot be") for at, code in faults.items()),
            tokens=sum(counts),
            token_counts=counts,
        )


@dataclass
class BulkStand:
    """`means` are the coordinators' resources; `worker` completes their jobs."""

    api: ApiStand
    means: Resources
    worker: PlayedWorker

    def upload(self, data: bytes) -> str:
        """The id of a file with these bytes."""
        record = FileRecord(
            new_file_id(), "lines.jsonl", len(data), BATCH, expires_at=time.time() + 3600
        )
        with self.means.files.storage.writer(object_name(record.id)) as file:
            file.write(data)
        self.means.files.add(record)
        return record.id

    def create(self, data: bytes, **fields: Any) -> str:
        """The id of a new batch over a file with these bytes."""
        now = time.time()
        known = {"expires_at": now + COMPLETION_SECONDS, "output_ttl": 3600} | fields
        batch = OpenAIBatch(new_id(), self.upload(data), **known)
        self.means.batches.create(batch)
        return batch.id

    def coordinator(self, batch_id: str) -> Coordinator:
        return Coordinator(self.means, self.means.batches.claim(batch_id))

    def batch(self, batch_id: str) -> OpenAIBatch:
        batch = self.means.batches.read(batch_id)
        assert batch is not None
        return batch

    def answers(self, file_id: str) -> list[dict[str, Any]]:
        """The lines of an output file, in its order."""
        data = b"".join(self.means.files.storage.chunks(object_name(file_id)))
        return [orjson.loads(one) for one in data.splitlines()]

    def ended(self, data: bytes, **fields: Any) -> OpenAIBatch:
        """A batch over these bytes, once it has ended."""
        batch_id = self.create(data, **fields)
        assert self.coordinator(batch_id).run()
        return self.batch(batch_id)


@contextmanager
def bulk_stand(redis_url: str, folder: Path, **settings: Any) -> Iterator[BulkStand]:
    """A service with the test as its only process; `settings` differ from the defaults."""
    with api_stand(redis_url, files=str(folder), **settings) as api:
        backend = api.backend
        means = Resources(
            settings=api.settings,
            store=api.store,
            liveness=backend.liveness,
            room=backend.room,
            files=backend.files,
            batches=backend.batches,
            token_table=None,
        )
        worker, stopping = PlayedWorker(api), threading.Event()
        thread = threading.Thread(target=worker.run, args=(stopping,))
        thread.start()
        try:
            yield BulkStand(api, means, worker)
        finally:
            stopping.set()
            thread.join()
