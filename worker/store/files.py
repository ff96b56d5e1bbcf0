"""Files of OpenAI's API: their records in Redis, their bytes in storage.

A record is a hash (`keys.file`) with `queue`, `owner`, `name`, `bytes`, `lines`, `purpose`,
`created` and `expires` (seconds since the epoch). It is written after the bytes and removed before
them. `file_limits` counts all stored files, including files without a record.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import redis

from worker.contract import keys
from worker.store import listing
from worker.store.clock import Clock
from worker.store.file_limits import FileLimits
from worker.store.storage import Storage, StorageUnavailable

logger = logging.getLogger(__name__)

#: Lines of one uploaded file, as OpenAI bounds them for batches.
MAX_LINES: Final = 50_000
#: Seconds that a file is kept by default, and the least and most that a caller can set.
DEFAULT_TTL: Final = 30 * 24 * 3600
LEAST_TTL, MOST_TTL = 3600, 30 * 24 * 3600
#: Seconds that an upload may take.
_UPLOAD_TTL = 24 * 3600
#: Files removed in one sweep.
_SWEPT = 50

#: Purposes of files: input of a batch, and output of a batch.
BATCH: Final = "batch"
BATCH_OUTPUT: Final = "batch_output"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Record of a file. Times in seconds since the epoch."""

    id: str
    name: str
    bytes: int
    purpose: str
    owner: str = ""
    lines: int = 0
    created_at: float = field(default_factory=time.time)
    expires_at: float = 0.0


def new_id() -> str:
    """An id of 128 random bits from the system's generator, so that ids cannot be guessed."""
    return f"file-{secrets.token_hex(16)}"


def object_name(file_id: str) -> str:
    """Name of a file's bytes in the storage."""
    return f"files/{file_id}"


class FileStore:
    """Files of one deployment: on one Redis database, under its queue's name, and one storage.

    Safe to share between threads. Raises redis.RedisError and StorageUnavailable.
    """

    def __init__(
        self, client: redis.Redis, storage: Storage, queue: str, *, max_bytes: int = 0
    ) -> None:
        """`max_bytes`: of all files; 0: the default."""
        self.storage = storage
        self.room = FileLimits(client, queue, max_bytes)
        self._client = client
        self._queue = queue
        self._clock = Clock(client)
        self._expiry = keys.files_expiry(queue)
        #: Listing of files by earlier versions, shared by all deployments.
        self._shared_expiry = keys.files_expiry(keys.SHARED_QUEUE)
        #: Files of other deployments that a sweep has passed, by listing.
        self._passed: dict[str, int] = {}

    def now(self) -> float:
        """The time by which files expire, in seconds since the epoch."""
        return self._clock.now()

    def reserve(self, file_id: str, owner: str, size: int, *, bounded: bool = True) -> None:
        """Reserve `size` bytes before they are written; without a record, `sweep` removes them.

        Raises FilesFull if a bound would be exceeded, unless `bounded` is False.
        """
        self.room.hold(file_id, owner, size, self.now() + _UPLOAD_TTL, bounded=bounded)

    def abandon(self, file_id: str) -> None:
        """Give up an upload: the next sweep removes its bytes."""
        self._client.zadd(self._expiry, {file_id: 0})

    def add(self, record: FileRecord) -> None:
        """Add the record of a file whose bytes are complete. May be repeated."""
        fields: dict[Any, Any] = {
            "queue": self._queue,
            "owner": record.owner,
            "name": record.name,
            "bytes": record.bytes,
            "lines": record.lines,
            "purpose": record.purpose,
            "created": record.created_at,
            "expires": record.expires_at,
        }
        self.room.hold(record.id, record.owner, record.bytes, record.expires_at, bounded=False)
        with self._client.pipeline() as pipe:
            pipe.hset(keys.file(record.id), mapping=fields)
            pipe.zadd(keys.files(self._queue, record.owner), {record.id: record.created_at})
            pipe.execute()

    def read(self, file_id: str) -> FileRecord | None:
        """Return the record of a file, or None if it does not exist or has expired."""
        return self._read_many([file_id])[0]

    def page(
        self,
        owner: str,
        *,
        limit: int,
        after: str | None = None,
        purpose: str | None = None,
        newest_first: bool = True,
    ) -> tuple[list[FileRecord], str | None]:
        """Files of a tenant, and the `after` of the next page; None if that is empty.

        Raises KeyError for an unknown `after`.
        """
        return listing.page_of_many(
            self._client,
            keys.with_shared(keys.files, self._queue, owner),
            self._read_many,
            limit=limit,
            after=after,
            wanted=lambda record: purpose in (None, record.purpose),
            newest_first=newest_first,
        )

    def delete(self, file_id: str, owner: str) -> None:
        """Remove a file: its record at once, then its bytes. May be repeated."""
        with self._client.pipeline() as pipe:
            pipe.delete(keys.file(file_id))
            for listed in keys.with_shared(keys.files, self._queue, owner):
                pipe.zrem(listed, file_id)
            if self._shared_expiry != self._expiry:
                pipe.zrem(self._shared_expiry, file_id)
            # Its bytes are due: if removing them fails now, the next sweep does it.
            pipe.zadd(self._expiry, {file_id: 0})
            pipe.execute()
        self.storage.remove(object_name(file_id))
        self.room.release(file_id)

    def sweep(self) -> None:
        """Remove some expired files and unfinished uploads."""
        try:
            for expiry in dict.fromkeys((self._expiry, self._shared_expiry)):
                self._sweep(expiry)
        except StorageUnavailable as error:
            logger.warning("Files were not removed: %s", error.message)
        self.room.repair()

    def _sweep(self, expiry: str) -> None:
        """Remove the next due files of one listing; skip those of other deployments."""
        passed = self._passed.get(expiry, 0)
        due = cast(
            "list[bytes]",
            self._client.zrange(
                expiry, "-inf", self.now(), byscore=True, offset=passed, num=_SWEPT
            ),
        )
        for raw in due:
            file_id = raw.decode()
            if self._is_ours(file_id, expiry):
                owner = cast("bytes | None", self._client.hget(keys.file(file_id), "owner"))
                self.delete(file_id, (owner or b"").decode())
            else:
                passed += 1
        self._passed[expiry] = passed if len(due) == _SWEPT else 0

    def _is_ours(self, file_id: str, expiry: str) -> bool:
        """Whether the bytes of a listed file belong in this storage.

        Earlier versions did not store the queue of a file. Then the file belongs here if its bytes
        are here.
        """
        if expiry != self._shared_expiry or self.room.holds(file_id):
            return True
        queue = cast("bytes | None", self._client.hget(keys.file(file_id), "queue"))
        if queue is None:
            return self.storage.exists(object_name(file_id))
        return queue.decode() == self._queue

    def _read_many(self, file_ids: Sequence[str]) -> list[FileRecord | None]:
        with self._client.pipeline(transaction=False) as pipe:
            for file_id in file_ids:
                pipe.hgetall(keys.file(file_id))
            found = pipe.execute()
        now, ours = self.now(), self._queue.encode()
        records = [
            _record(one, raw) if raw and raw.get(b"queue", ours) == ours else None
            for one, raw in zip(file_ids, found, strict=True)
        ]
        return [one if one is not None and one.expires_at > now else None for one in records]


def _record(file_id: str, fields: Mapping[bytes, bytes]) -> FileRecord:
    values = {name.decode(): value.decode() for name, value in fields.items()}
    return FileRecord(
        id=file_id,
        name=values["name"],
        bytes=int(values["bytes"]),
        purpose=values["purpose"],
        owner=values["owner"],
        lines=int(values["lines"]),
        created_at=float(values["created"]),
        expires_at=float(values["expires"]),
    )
