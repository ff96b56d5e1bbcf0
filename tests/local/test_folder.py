"""The data directory and its lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.processes import Processes
from worker.contract.settings import default_folder
from worker.local.folder import DataFolderBusy, DataFolderUnusable, lock


def test_a_second_lock_is_refused_and_names_the_owner(tmp_path: Path) -> None:
    with lock(tmp_path / "new" / "data"), pytest.raises(DataFolderBusy) as refused:
        lock(tmp_path / "new" / "data")
    assert f"process {os.getpid()}" in refused.value.message


def test_a_lock_that_was_given_up_can_be_taken_again(tmp_path: Path) -> None:
    lock(tmp_path).close()
    lock(tmp_path).close()


def test_a_lock_handed_to_a_child_is_held_until_the_child_ends(
    processes: Processes, tmp_path: Path
) -> None:
    file = lock(tmp_path)
    child = processes.children.start(["sleep", "60"], keep_fds=[file.fileno()])
    file.close()
    with pytest.raises(DataFolderBusy):
        lock(tmp_path)
    child.kill()
    child.wait()
    processes.children.forget(child)
    lock(tmp_path).close()


def test_the_lock_of_a_killed_owner_says_that_its_valkey_is_ending(tmp_path: Path) -> None:
    with lock(tmp_path) as file:
        file.truncate(0)
        file.write("999999999\n")
        file.flush()
        with pytest.raises(DataFolderBusy, match="try again in some seconds"):
            lock(tmp_path)


def test_the_data_is_for_its_owner_alone(tmp_path: Path) -> None:
    lock(tmp_path / "data").close()
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.lstat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


def test_an_existing_folder_is_restricted_with_embedqs_own_contents(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (folder / "files" / "files").mkdir(parents=True)
    (folder / "appendonlydir").mkdir()
    own = ("lock", "valkey.log", "appendonlydir/a.aof", "files/files/file-1")
    for name in (*own, "notes.txt"):
        (folder / name).touch(mode=0o644)
    elsewhere.touch()
    elsewhere.chmod(0o644)
    (folder / "files" / "link").symlink_to(elsewhere)
    for path in (folder, folder / "files", folder / "files" / "files", folder / "appendonlydir"):
        path.chmod(0o755)
    lock(folder).close()
    found = modes(folder)
    assert {found[name] for name in ("data", "files", "appendonlydir")} == {0o700}
    assert {found[name.split("/")[-1]] for name in own} == {0o600}
    assert found["notes.txt"] == elsewhere.stat().st_mode & 0o777 == 0o644


def test_a_folder_that_all_may_use_stays_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    lock(tmp_path).close()
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777
    assert modes(tmp_path)["lock"] == 0o600


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataFolderUnusable, match=r"file.data: Not a directory"):
        lock(tmp_path / "file" / "data")


@pytest.mark.parametrize(
    ("value", "folder"),
    [
        ("/srv/data", "/srv/data/embedq"),
        ("", "~/.local/share/embedq"),
        ("x", "~/.local/share/embedq"),
    ],
)
def test_the_default_folder_follows_xdg(
    monkeypatch: pytest.MonkeyPatch, value: str, folder: str
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", value)
    assert default_folder() == Path(folder).expanduser()
