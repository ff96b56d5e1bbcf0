"""Files of users, as OpenAI's API knows them: what is known of one in Redis, its bytes in storage.

A record is a hash (`keys.file`) with `owner`, `name`, `bytes`, `lines`, `purpose`, `created` and
`expires` (seconds since the epoch). It is written once the bytes are there and removed before them.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import redis

from worker.contract import keys, listing
from worker.contract.storage import Storage, StorageUnavailable

logger = logging.getLogger(__name__)

#: Bounds of one uploaded file, as OpenAI has them for batches.
MAX_BYTES: Final = 200 * 10**6
MAX_LINES: Final = 50_000
#: Seconds that a file is kept unless its owner says otherwise, and the least and most of that.
DEFAULT_TTL: Final = 30 * 24 * 3600
LEAST_TTL, MOST_TTL = 3600, 30 * 24 * 3600
#: Seconds that an upload may take.
_UPLOAD_TTL = 24 * 3600
#: Files removed in one sweep.
_SWEPT = 50

#: What a file is for: one to read requests from, and one that a batch wrote.
BATCH: Final = "batch"
BATCH_OUTPUT: Final = "batch_output"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as its owner sees it. Times in seconds since the epoch."""

    id: str
    name: str
    bytes: int
    purpose: str
    owner: str = ""
    lines: int = 0
    created_at: float = field(default_factory=time.time)
    expires_at: float = 0.0

    @property
    def expired(self) -> bool:
        return time.time() >= self.expires_at


def new_id() -> str:
    """An id of 128 random bits from the system's generator: nobody can guess another's."""
    return f"file-{secrets.token_hex(16)}"


def object_name(file_id: str) -> str:
    """Where the bytes of a file lie in the storage."""
    return f"files/{file_id}"


class FileStore:
    """Files on one Redis database and one storage. Safe to share between threads.

    Raises redis.RedisError and StorageUnavailable.
    """

    def __init__(self, client: redis.Redis, storage: Storage) -> None:
        self.storage = storage
        self._client = client

    def reserve(self, file_id: str) -> None:
        """Bytes are about to be written; they are swept away where no record follows them."""
        self._client.zadd(keys.FILES_EXPIRY, {file_id: time.time() + _UPLOAD_TTL})

    def add(self, record: FileRecord) -> None:
        """The bytes are there: from now on the file is. May be repeated."""
        fields: dict[Any, Any] = {
            "owner": record.owner,
            "name": record.name,
            "bytes": record.bytes,
            "lines": record.lines,
            "purpose": record.purpose,
            "created": record.created_at,
            "expires": record.expires_at,
        }
        with self._client.pipeline() as pipe:
            pipe.hset(keys.file(record.id), mapping=fields)
            pipe.zadd(keys.files(record.owner), {record.id: record.created_at})
            pipe.zadd(keys.FILES_EXPIRY, {record.id: record.expires_at})
            pipe.execute()

    def read(self, file_id: str) -> FileRecord | None:
        """A file, or None where there is none, or none any more."""
        fields = cast("dict[bytes, bytes]", self._client.hgetall(keys.file(file_id)))
        if not fields:
            return None
        record = _record(file_id, fields)
        return None if record.expired else record

    def page(
        self,
        owner: str,
        *,
        limit: int,
        after: str | None = None,
        purpose: str | None = None,
        newest_first: bool = True,
    ) -> tuple[list[FileRecord], bool]:
        """Files of an owner, and whether there are more. Raises KeyError for an unknown `after`."""

        def wanted(file_id: str) -> FileRecord | None:
            record = self.read(file_id)
            return record if record is not None and purpose in (None, record.purpose) else None

        return listing.page(
            self._client,
            keys.files(owner),
            wanted,
            limit=limit,
            after=after,
            newest_first=newest_first,
        )

    def delete(self, file_id: str, owner: str) -> None:
        """Remove a file: it is gone at once, its bytes soon. May be repeated."""
        with self._client.pipeline() as pipe:
            pipe.delete(keys.file(file_id))
            pipe.zrem(keys.files(owner), file_id)
            # Its bytes are due: where removing them fails now, the next sweep does it.
            pipe.zadd(keys.FILES_EXPIRY, {file_id: 0})
            pipe.execute()
        self._remove_bytes(file_id)

    def sweep(self) -> None:
        """Remove some files whose time has passed, and uploads that never ended."""
        due = cast(
            "list[bytes]",
            self._client.zrange(
                keys.FILES_EXPIRY, "-inf", time.time(), byscore=True, offset=0, num=_SWEPT
            ),
        )
        for raw in due:
            file_id = raw.decode()
            owner = cast("bytes | None", self._client.hget(keys.file(file_id), "owner"))
            try:
                self.delete(file_id, (owner or b"").decode())
            except StorageUnavailable as error:
                logger.warning("File %s was not removed: %s", file_id, error.message)
                return

    def _remove_bytes(self, file_id: str) -> None:
        self.storage.remove(object_name(file_id))
        self._client.zrem(keys.FILES_EXPIRY, file_id)


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
