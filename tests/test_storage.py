"""Objects by name, in a folder or behind a URL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from worker.store.storage import CHUNK, ObjectMissing, Storage, StorageUnavailable


@pytest.fixture(params=["folder", "file://", "memory://"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    urls = {
        "folder": str(tmp_path / "deep" / "files"),
        "file://": f"file://{tmp_path}/deep/files",
        "memory://": "memory://bucket/files",
    }
    yield Storage(urls[request.param])
    fsspec.filesystem("memory").store.clear()


def write(storage: Storage, name: str, data: bytes) -> None:
    with storage.writer(name) as file:
        file.write(data)


def read(storage: Storage, name: str) -> bytes:
    return b"".join(storage.chunks(name))


def test_what_is_written_is_read(storage: Storage) -> None:
    data = b"0123456789" * (CHUNK // 4)
    write(storage, "files/one", data)
    assert read(storage, "files/one") == data
    with storage.reader("files/one") as file:
        file.seek(5)
        assert file.read(3) == b"567"
    write(storage, "files/one", b"again")
    assert read(storage, "files/one") == b"again"


def test_objects_are_joined_in_order(storage: Storage) -> None:
    for name in ("b", "a", "c"):
        write(storage, f"parts/{name}", name.encode() * 3)
    assert storage.join(["parts/b", "parts/a", "parts/c"], "files/all") == 9
    assert read(storage, "files/all") == b"bbbaaaccc"


def test_an_object_that_was_not_written_to_its_end_is_not_there(storage: Storage) -> None:
    def break_off() -> None:
        with storage.writer("files/half") as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    with pytest.raises(ObjectMissing):
        read(storage, "files/half")


def test_a_folder_is_removed_with_all_in_it_and_again(storage: Storage) -> None:
    write(storage, "batches/x/1", b"1")
    write(storage, "batches/x/2", b"2")
    write(storage, "batches/xy", b"3")
    for _ in range(2):
        storage.remove("batches/x")
    with pytest.raises(ObjectMissing):
        read(storage, "batches/x/1")
    assert read(storage, "batches/xy") == b"3"


@pytest.mark.parametrize("url", ["nosuch://bucket", "/dev/null/folder"])
def test_a_storage_that_cannot_be_used_says_where_it_should_be(url: str) -> None:
    with pytest.raises(StorageUnavailable, match=url):
        write(Storage(url), "files/one", b"")


def test_without_a_setting_files_lie_beside_the_data_of_embedq_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    write(Storage(""), "files/one", b"1")
    assert (tmp_path / "embedq" / "files" / "files" / "one").read_bytes() == b"1"
