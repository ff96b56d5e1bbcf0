"""The texts of a batch as jobs: a bounded number at a time, each until it has ended."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from worker.batches.notifications import Notifications
from worker.batches.packs import Pack
from worker.batches.resources import Resources
from worker.contract import keys
from worker.contract.jobs import Status
from worker.contract.lanes import Lane
from worker.store.openai_batch import OpenAIBatch
from worker.store.records import JobRecord
from worker.store.submissions import Deduplication, JobRequest, QueueCapacity
from worker.store.worker_registry import Workers

#: Seconds of the workers' time, and batches of each of them, that may be under way at once.
_SECONDS_AHEAD = 2.0
_BATCHES_AHEAD = 4
#: Part of the service's capacity that batches may use; the rest is for waiting callers.
_SHARE_OF_CAPACITY = 0.5
#: Seconds after which jobs are read without a notice of their end.
CHECK_SECONDS = 5.0


class EndedPack(NamedTuple):
    """A job that has ended: `meta` is its stored outcome, None if that has expired."""

    pack: Pack
    job_id: str
    record: JobRecord | None
    meta: bytes | None


class Dispatch:
    """Jobs of one run over a batch. Belongs to the thread of that run; raises redis.RedisError.

    A job is identified by its lines: after a crash the next run finds the jobs that are under way
    or have ended meanwhile, and does not submit them again.
    """

    def __init__(self, means: Resources, notices: Notifications, batch: OpenAIBatch) -> None:
        self._means = means
        self._notices = notices
        #: The owner in the jobs' records, so that no caller's list contains them. The scheduler
        #: treats them as jobs of the batch's own owner.
        self._holder = batch.id
        self._owner = batch.owner
        self._under_way: dict[str, Pack] = {}
        #: Idempotency keys of unreleased jobs, by job id.
        self._keys: dict[str, str] = {}
        #: Jobs to be read without a notice.
        self._unsure: set[str] = set()
        self._check_at = 0.0

    def __len__(self) -> int:
        return len(self._under_way)

    def has_room(self, workers: Workers) -> bool:
        """Whether another job should be sent now."""
        batches = sum(model.batch_tokens for model in workers.models.values()) * workers.count
        ahead = max(_BATCHES_AHEAD * batches, _SECONDS_AHEAD * workers.tokens_per_second)
        return sum(pack.tokens for pack in self._under_way.values()) < ahead

    def send(self, pack: Pack) -> bool:
        """Submit a job, or find the one with these lines; False if the service is full."""
        job = JobRequest.of(
            pack.texts,
            pack.options,
            pack.model,
            queue=self._means.settings.queue,
            owner=self._holder,
            tenant=self._owner,
            lane=Lane.BULK,
        )
        deduplicate = _deduplicate(pack)
        capacity = QueueCapacity(
            tokens=int(self._means.settings.max_queued_tokens * _SHARE_OF_CAPACITY),
            bytes=int(self._means.room.messages() * _SHARE_OF_CAPACITY),
            result_bytes=int(self._means.room.results() * _SHARE_OF_CAPACITY),
        )
        acceptance = self._means.store.submit(job, capacity, deduplicate=deduplicate)
        if acceptance.verdict == "conflict":
            return self.send(replace(pack, before=job.id))
        if acceptance.verdict not in ("accepted", "replayed"):
            return False
        if acceptance.verdict == "replayed":
            self._unsure.add(acceptance.job_id)
        self._under_way[acceptance.job_id] = pack
        self._keys[acceptance.job_id] = deduplicate.key or ""
        return True

    def collect(self, seconds: float) -> tuple[list[EndedPack], set[str]]:
        """Wait for jobs to end; return those that have, and batches that were changed."""
        wait = 0.0 if self._unsure else min(seconds, CHECK_SECONDS)
        news = self._notices.wait(wait)
        suspects = (news.ended & self._under_way.keys()) | self._unsure
        if news.missed or time.monotonic() >= self._check_at:
            suspects = set(self._under_way)
            self._check_at = time.monotonic() + CHECK_SECONDS
        self._unsure.clear()
        ended = [found for job_id in suspects if (found := self._look(job_id)) is not None]
        for one in ended:
            del self._under_way[one.job_id]
        return ended, news.batches

    def cancel(self) -> None:
        """Cancel the jobs under way; a worker that runs one drops its vectors."""
        for job_id in list(self._under_way):
            self._means.store.cancel(job_id)
            self._unsure.add(job_id)

    def release(self, job_ids: Sequence[str]) -> None:
        """Delete jobs from Redis after their answers have been written."""
        client, queue = self._means.store.client, self._means.settings.queue
        for job_id in job_ids:
            self._means.store.release(job_id, 0)
            client.delete(keys.idempotency(queue, self._holder, self._keys.pop(job_id, "")))

    def _look(self, job_id: str) -> EndedPack | None:
        """A job with its outcome if it has ended or no longer exists."""
        record, meta = self._means.store.read_with_outcome(job_id)
        if record is not None and not record.status.ended:
            return None
        if record is not None and record.status is Status.SUCCEEDED and meta is None:
            record = None
        return EndedPack(self._under_way[job_id], job_id, record, meta)


def _deduplicate(pack: Pack) -> Deduplication:
    lines = f"{pack.entries[0].number}-{pack.entries[-1].number}-{len(pack.entries)}"
    content = json.dumps([pack.options.model_dump(), pack.texts]).encode("ascii")
    fingerprint = hashlib.sha256(content).hexdigest()
    return Deduplication(key=f"{lines}:{pack.before}", fingerprint=fingerprint)
