"""Limits on the number and bytes of stored files, of a tenant and of a deployment.

Before a file is written, an upper estimate of its bytes is reserved. The estimate is corrected
after the write and released when the file is removed. Output of batches counts too, but is never
rejected, so that a running batch can end. While a limit is reached, no batch is accepted.
"""

from __future__ import annotations

from typing import Final, NamedTuple, cast

import redis

from worker.contract import keys
from worker.contract.errors import EmbedqError
from worker.store import scripts

#: Bytes of one uploaded file, as OpenAI bounds them for batches.
MAX_BYTES: Final = 200 * 10**6
#: Bytes of all files by default: 250 files of the largest size, 50 GB.
DEFAULT_MAX_BYTES: Final = 250 * MAX_BYTES
#: Files of all tenants: their records take some 50 MB of Redis' memory.
MAX_FILES: Final = 50_000
#: Divisor of both limits for one tenant.
TENANT_SHARE: Final = 5
#: Files that one repair checks.
_REPAIRED = 50


class FilesFull(EmbedqError):
    """Stored files have reached a bound, which the message names."""

    code = "files_full"


class FileBounds(NamedTuple):
    """Most files and bytes of one tenant, and of all tenants."""

    tenant_files: int
    tenant_bytes: int
    files: int
    bytes: int


class FileLimits:
    """Counts the files of a deployment. Safe to share between threads; raises RedisError."""

    def __init__(self, client: redis.Redis, queue: str, max_bytes: int = 0) -> None:
        most = max_bytes or DEFAULT_MAX_BYTES
        self.bounds = FileBounds(MAX_FILES // TENANT_SHARE, most // TENANT_SHARE, MAX_FILES, most)
        self._client = client
        self._held, self._used = keys.files_held(queue), keys.files_used(queue)
        self._keys = [keys.files_expiry(queue), self._held, self._used]
        self._hold = client.register_script(scripts.FILE_HOLD)
        self._release = client.register_script(scripts.FILE_RELEASE)
        #: Cursor of the next repair.
        self._cursor = 0

    def hold(
        self, file_id: str, owner: str, size: int, due: float, *, bounded: bool = True
    ) -> None:
        """Count `size` bytes for a file until it is removed, at `due` at the latest.

        Raises FilesFull.
        """
        bounds = self.bounds if bounded else (0, 0, 0, 0)
        reached = self._hold(keys=self._keys, args=[file_id, owner, size, due, *bounds])
        if reached:
            raise self._full(int(cast("int", reached)))

    def release(self, file_id: str) -> None:
        """Stop counting a file whose bytes are removed."""
        self._release(keys=self._keys, args=[file_id])

    def holds(self, file_id: str) -> bool:
        """Whether a file is counted, so that its bytes belong in this deployment's storage."""
        return bool(self._client.hexists(self._held, file_id))

    def check(self, owner: str) -> None:
        """Raise FilesFull if a limit is reached."""
        names = [f"files:{owner}", f"bytes:{owner}", "files", "bytes"]
        used = cast("list[bytes | None]", self._client.hmget(self._used, names))
        for at, (value, bound) in enumerate(zip(used, self.bounds, strict=True), 1):
            if int(value or 0) >= bound:
                raise self._full(at)

    def repair(self) -> None:
        """Release some files that a process of an earlier version has removed."""
        self._cursor, found = cast(
            "tuple[int, dict[bytes, bytes]]",
            self._client.hscan(self._held, self._cursor, count=_REPAIRED),
        )
        ids = [one.decode() for one in found]
        with self._client.pipeline(transaction=False) as pipe:
            for file_id in ids:
                pipe.exists(keys.file(file_id))
                pipe.zscore(self._keys[0], file_id)
            answers = pipe.execute()
        for file_id, known, due in zip(ids, answers[::2], answers[1::2], strict=True):
            if not known and due is None:
                self.release(file_id)

    def _full(self, reached: int) -> FilesFull:
        what = f"{self.bounds[reached - 1]:,} {('files', 'bytes')[(reached - 1) % 2]}"
        if reached <= 2:
            return FilesFull(f"your files would hold more than {what}; delete some")
        return FilesFull(f"the files of all callers would hold more than {what}")
