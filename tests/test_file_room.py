"""Stored files are bounded, and found again by the deployment that stored them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from worker.contract import keys
from worker.store import file_limits
from worker.store.file_limits import FileBounds, FilesFull
from worker.store.files import FileRecord, FileStore, new_id, object_name
from worker.store.openai_batch import OpenAIBatch
from worker.store.openai_batch import new_id as new_batch_id
from worker.store.openai_batches import OpenAIBatchStore
from worker.store.storage import Storage, StorageUnavailable


@pytest.fixture
def files(redis_client: redis.Redis, tmp_path: Path) -> FileStore:
    made = FileStore(redis_client, Storage(str(tmp_path / "files")), "embedq")
    made.room.bounds = FileBounds(3, 300, 5, 500)
    return made


def store(files: FileStore, owner: str = "", size: int = 10, *, ttl: float = 3600) -> str:
    """Store a file like an upload and the end of a batch."""
    file_id = new_id()
    files.reserve(file_id, owner, size)
    with files.storage.writer(object_name(file_id)) as file:
        file.write(b"x" * size)
    now = files.now()
    files.add(FileRecord(file_id, "f", size, "batch", owner, created_at=now, expires_at=now + ttl))
    return file_id


def used(client: redis.Redis, queue: str = "embedq") -> dict[str, int]:
    raw = client.hgetall(keys.files_used(queue))
    return {name.decode(): int(value) for name, value in raw.items()}


@pytest.mark.parametrize(
    ("owners", "sizes", "words"),
    [
        ("aaaa", (1, 1, 1, 1), "more than 3 files; delete some"),
        ("aa", (200, 101), "more than 300 bytes; delete some"),
        ("aaabbc", (1,) * 6, "all callers would hold more than 5 files"),
        ("ab", (300, 201), "all callers would hold more than 500 bytes"),
    ],
)
def test_each_bound_is_named_when_it_is_reached(
    files: FileStore, owners: str, sizes: tuple[int, ...], words: str
) -> None:
    *good, last = zip(owners, sizes, strict=True)
    stored = [store(files, *one) for one in good]
    with pytest.raises(FilesFull, match=words):
        store(files, *last)
    files.delete(stored[0], good[0][0])
    store(files, last[0], 1)


def test_what_is_deleted_counts_no_longer(files: FileStore, redis_client: redis.Redis) -> None:
    ids = [store(files, owner) for owner in "ab"]
    assert used(redis_client) == {
        "files": 2,
        "bytes": 20,
        "files:a": 1,
        "files:b": 1,
        "bytes:a": 10,
        "bytes:b": 10,
    }
    for owner, file_id in zip("ab", ids, strict=True):
        for _ in range(2):
            files.delete(file_id, owner)
    assert used(redis_client) == {}
    assert not redis_client.exists(keys.files_held("embedq"), keys.files_expiry("embedq"))


def test_a_repeated_call_counts_once(files: FileStore, redis_client: redis.Redis) -> None:
    file_id = new_id()
    for _ in range(3):
        files.reserve(file_id, "a", 200)
    assert used(redis_client)["bytes"] == 200
    for _ in range(3):
        files.add(FileRecord(file_id, "f", 7, "batch", "a", expires_at=2e9))
    assert used(redis_client) == {"files": 1, "bytes": 7, "files:a": 1, "bytes:a": 7}
    for _ in range(3):
        files.room.release(file_id)
    assert used(redis_client) == {}


def test_uploads_at_once_never_pass_the_bound(files: FileStore, redis_client: redis.Redis) -> None:
    def reserve(_: int) -> bool:
        try:
            files.reserve(new_id(), "a", 60)
        except FilesFull:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(reserve, range(40))) == 3
    assert used(redis_client)["bytes"] == 180


def test_output_of_a_batch_counts_but_is_never_refused(
    files: FileStore, redis_client: redis.Redis
) -> None:
    file_id = new_id()
    files.reserve(file_id, "a", 0, bounded=False)
    files.add(FileRecord(file_id, "f", 10_000, "batch_output", "a", expires_at=2e9))
    assert used(redis_client)["bytes:a"] == 10_000
    with pytest.raises(FilesFull):
        files.room.check("a")
    with pytest.raises(FilesFull):
        files.room.check("b")
    files.delete(file_id, "a")
    files.room.check("a")


def test_an_upload_that_failed_frees_its_room_with_the_next_sweep(
    files: FileStore, redis_client: redis.Redis
) -> None:
    file_id = new_id()
    files.reserve(file_id, "a", 300)
    files.abandon(file_id)
    files.sweep()
    assert used(redis_client) == {}


def test_files_that_an_older_process_removed_count_no_longer(
    files: FileStore, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_limits, "_REPAIRED", 1)
    gone, kept = store(files, "a"), store(files, "a")
    redis_client.delete(keys.file(gone))
    redis_client.zrem(keys.files_expiry("embedq"), gone)
    files.reserve("uploading", "a", 1)
    for _ in range(50):
        files.sweep()
    assert used(redis_client) == {"files": 2, "bytes": 11, "files:a": 2, "bytes:a": 11}
    assert files.read(kept) is not None


Deployment = Callable[[str], FileStore]


@pytest.fixture
def deployment(redis_client: redis.Redis, tmp_path: Path) -> Deployment:
    """A deployment's files by its queue, with its own storage on the shared Redis."""
    return lambda queue: FileStore(redis_client, Storage(str(tmp_path / queue)), queue)


def stored(tmp_path: Path, queue: str) -> int:
    return len([path for path in (tmp_path / queue).rglob("*") if path.is_file()])


@pytest.mark.parametrize("queues", [("embedq", "two"), ("one", "two")])
def test_expired_files_of_two_deployments_leave_both_disks(
    deployment: Deployment, tmp_path: Path, queues: tuple[str, str]
) -> None:
    one, two = map(deployment, queues)
    for files in (one, two):
        for _ in range(60):
            store(files, "a", ttl=-1)
    for files in (one, one, one, two, two, two):
        files.sweep()
    assert [stored(tmp_path, queue) for queue in queues] == [0, 0]
    assert used(one._client, queues[0]) == used(one._client, queues[1]) == {}


def as_stored_before(client: redis.Redis, files: FileStore, owner: str = "a") -> str:
    """An expired file of the previous version: under no deployment's name."""
    file_id = store(files, owner, ttl=-1)
    files.room.release(file_id)
    client.hdel(keys.file(file_id), "queue")
    client.zrem(keys.files(files._queue, owner), file_id)
    client.zadd(f"embedq:files:{owner}", {file_id: 1})
    client.zadd("embedq:files-expiry", {file_id: 2})
    return file_id


@pytest.mark.parametrize("first", ["embedq", "two"])
def test_files_of_the_version_before_leave_the_disk_that_they_are_on(
    deployment: Deployment, redis_client: redis.Redis, tmp_path: Path, first: str
) -> None:
    deployments = [deployment("embedq"), deployment("two")]
    for _ in range(60):
        for files in deployments:
            as_stored_before(redis_client, files)
    deployments.sort(key=lambda files: files._queue != first)
    for files in deployments:
        for _ in range(10):
            files.sweep()
    assert [stored(tmp_path, queue) for queue in ("embedq", "two")] == [0, 0]
    assert not redis_client.exists("embedq:files-expiry")


def test_a_storage_that_fails_leaves_expired_files_to_the_next_sweep(
    files: FileStore, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store(files, "a", ttl=-1)

    def fail(_: str) -> None:
        raise StorageUnavailable("not now")

    with monkeypatch.context() as patch:
        patch.setattr(files.storage, "remove", fail)
        files.sweep()
    assert stored(tmp_path, "files") == 1
    files.sweep()
    assert stored(tmp_path, "files") == 0
    assert used(redis_client) == {}


def test_a_deployment_shows_its_own_files_and_those_of_the_version_before(
    deployment: Deployment, redis_client: redis.Redis
) -> None:
    one, two = deployment("one"), deployment("embedq")
    before = as_stored_before(redis_client, one)
    redis_client.hset(keys.file(before), "expires", 9e9)
    mine, theirs = store(one, "a"), store(two, "a")
    assert [file.id for file in one.page("a", limit=9)[0]] == [mine, before]
    assert [file.id for file in one.page("a", limit=9, newest_first=False)[0]] == [before, mine]
    assert one.page("a", limit=9, after=mine) == ([one.read(before)], None)
    assert one.read(theirs) is None
    assert two.read(theirs) is not None


def test_a_deployment_shows_its_own_batches_and_those_of_the_version_before(
    redis_client: redis.Redis,
) -> None:
    one, two = (OpenAIBatchStore(redis_client, redis_client, queue) for queue in ("one", "embedq"))
    mine, theirs, before = (OpenAIBatch(new_batch_id(), "file-x") for _ in range(3))
    one.create(mine)
    two.create(theirs)
    two.create(before)
    redis_client.hdel(keys.batch(before.id), "queue")
    assert [batch.id for batch in one.page("", limit=9, after=None)[0]] == [mine.id, before.id]
    assert one.read(theirs.id) is None
    assert redis_client.lrange("one.batches", 0, -1)
