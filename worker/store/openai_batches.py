"""Batches in Redis: created, claimed by their coordinators, listed, cancelled.

A batch is a hash (`keys.batch`), see `openai_batch`. Its coordinator, a Celery task, claims it
before each run and writes with the number of its claim. A later claim voids the writes of a run
that was wrongly considered dead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, cast

import orjson
import redis

from worker.contract import keys, messages
from worker.store import listing, scripts
from worker.store.clock import Clock
from worker.store.openai_batch import (
    CANCELLABLE,
    OpenAIBatch,
    OpenAIBatchStatus,
    fields_of,
    parse,
    progress_of,
)
from worker.store.outbox import MessageOutbox

#: The Celery task that runs a batch.
TASK_NAME: Final = "embedq.batch"
#: Seconds that a batch can be read.
BATCH_TTL: Final = 31 * 24 * 3600


class Claim(NamedTuple):
    """A batch that one run of its coordinator has claimed."""

    batch: OpenAIBatch
    epoch: int


class Superseded(Exception):
    """Another run has claimed the batch, or the batch is gone: this run must end."""


class OpenAIBatchStore:
    """Batches on one Redis database. Safe to share between threads; raises redis.RedisError."""

    def __init__(self, client: redis.Redis, broker: redis.Redis, queue: str) -> None:
        """`broker`: the server of the messages, which may be `client` itself."""
        self._client = client
        self._broker = broker
        self._outbox = MessageOutbox(client, broker, queue)
        self._queue = queue
        self._messages = keys.batch_queue(queue)
        self._clock = Clock(client)
        self._claim = client.register_script(scripts.BATCH_CLAIM)
        self._update = client.register_script(scripts.BATCH_UPDATE)

    def now(self) -> float:
        """The time by which batches expire: Redis' clock, in seconds since the epoch."""
        return self._clock.now()

    def create(self, batch: OpenAIBatch) -> None:
        """Write a batch and queue its coordinator's message in one step.

        If the broker is another server, the message stays in the outbox until the broker has it;
        see `JobStore.submit`.
        """
        listed = keys.batches(self._queue, batch.owner)
        fields: dict[Any, Any] = {"queue": self._queue, **fields_of(batch)}
        with self._client.pipeline() as pipe:
            pipe.hset(keys.batch(batch.id), mapping=fields)
            pipe.expire(keys.batch(batch.id), BATCH_TTL)
            pipe.zadd(listed, {batch.id: batch.created_at})
            pipe.expire(listed, BATCH_TTL)
            pipe.zremrangebyscore(listed, 0, batch.created_at - BATCH_TTL)
            addressed = self._messages, self._message(batch.id)
            self._outbox.put(pipe, batch.id, batch.created_at, addressed)
            pipe.execute()
        self._outbox.send({batch.id: addressed})

    def send(self, batch_id: str) -> None:
        """Queue a message for the batch's coordinator, behind those that wait."""
        self._broker.lpush(self._messages, self._message(batch_id))

    def read(self, batch_id: str) -> OpenAIBatch | None:
        """Return the batch, or None if it does not exist or has expired."""
        return self._read_many([batch_id])[0]

    def page(
        self, owner: str, *, limit: int, after: str | None
    ) -> tuple[list[OpenAIBatch], str | None]:
        """Batches of a tenant, newest first, and the `after` of the next page.

        `after` is None if the next page is empty. Raises KeyError if `after` is not in the listing.
        """
        return listing.page_of_many(
            self._client,
            keys.with_shared(keys.batches, self._queue, owner),
            self._read_many,
            limit=limit,
            after=after,
            wanted=lambda batch: batch.owner == owner,
        )

    def cancel(self, batch_id: str) -> None:
        """Stop the coordinator, unless the batch has ended or is already being cancelled."""
        self._write(
            batch_id,
            "",
            CANCELLABLE,
            {
                "status": OpenAIBatchStatus.CANCELLING,
                f"at:{OpenAIBatchStatus.CANCELLING}": self.now(),
            },
        )
        self._client.publish(keys.EVENTS, orjson.dumps({"batches": [batch_id]}))

    def claim(self, batch_id: str) -> Claim:
        """Claim a batch; earlier claims become void. Raises Superseded if it does not exist."""
        epoch = int(cast("int", self._claim(keys=[keys.batch(batch_id)])))
        batch = self.read(batch_id) if epoch else None
        if batch is None:
            raise Superseded(batch_id)
        return Claim(batch, epoch)

    def checkpoint(self, claim: Claim, batch: OpenAIBatch) -> OpenAIBatchStatus:
        """Write a batch's progress and return its unchanged status. Raises Superseded."""
        return self._write(batch.id, str(claim.epoch), (), progress_of(batch))

    def move(
        self,
        claim: Claim,
        batch: OpenAIBatch,
        status: OpenAIBatchStatus,
        *,
        come_from: Sequence[OpenAIBatchStatus],
    ) -> OpenAIBatch:
        """Write a batch with a new status, if its status is in `come_from`.

        Returns the batch as it is then, unchanged if it had another status. Raises Superseded.
        """
        moved = replace(batch, status=status, reached={**batch.reached, status: self.now()})
        found = self._write(batch.id, str(claim.epoch), come_from, fields_of(moved))
        if found is status:
            return moved
        return self.read(batch.id) or moved

    def _read_many(self, batch_ids: Sequence[str]) -> list[OpenAIBatch | None]:
        with self._client.pipeline(transaction=False) as pipe:
            for batch_id in batch_ids:
                pipe.hgetall(keys.batch(batch_id))
            found = pipe.execute()
        ours = self._queue.encode()
        return [
            # An earlier version stored no queue.
            parse(one, raw) if raw and raw.get(b"queue", ours) == ours else None
            for one, raw in zip(batch_ids, found, strict=True)
        ]

    def _write(
        self,
        batch_id: str,
        epoch: str,
        come_from: Sequence[OpenAIBatchStatus],
        fields: Mapping[str, Any],
    ) -> OpenAIBatchStatus:
        arguments: list[Any] = [epoch, f"|{'|'.join(come_from)}|" if come_from else ""]
        for name, value in fields.items():
            arguments += (name, value)
        answer = cast("bytes", self._update(keys=[keys.batch(batch_id)], args=arguments))
        if not answer:
            raise Superseded(batch_id)
        return OpenAIBatchStatus(answer.decode())

    def _message(self, batch_id: str) -> bytes:
        return messages.of_task(TASK_NAME, messages.new_id(), [batch_id], self._messages)
