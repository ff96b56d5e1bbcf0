"""The data directory: its path, and the lock that limits it to one embedq at a time."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import IO

from worker.contract.errors import EmbedqError

#: Files and folders of Valkey, the API and the workers in a data directory.
_CONTENTS = ("lock", "valkey.log", "appendonlydir", "files")


class DataFolderBusy(EmbedqError):
    """Another embedq uses the data directory; the message says which process."""

    code = "data_directory_busy"


class DataFolderUnusable(EmbedqError):
    """The data directory cannot be made or written."""

    code = "data_directory_unusable"


def lock(folder: Path) -> IO[str]:
    """Make the folder if need be and lock it; the lock is held as long as the file is open.

    The lock belongs to the open file, not to a process: hand its descriptor to the server that
    writes into the folder, and the lock is held until the last of both has ended, also after a
    SIGKILL of this process. Raises `DataFolderBusy` and `DataFolderUnusable`.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "lock").touch(mode=0o600)
        restrict(folder)
        file = (folder / "lock").open("a+")
    except OSError as exc:
        raise DataFolderUnusable(f"data directory {folder}: {exc.strerror}") from exc
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise DataFolderBusy(_who(folder, owner)) from exc
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def restrict(folder: Path) -> None:
    """Remove other users' permissions from the folder and from embedq's own contents.

    Other contents keep theirs, and so does a folder of another user or one open to all, such as
    `/tmp`. Raises OSError.
    """
    found = folder.stat()
    if found.st_uid == os.getuid() and not found.st_mode & stat.S_ISVTX:
        _restrict(folder)
    for name in _CONTENTS:
        top = folder / name
        _restrict(top)
        for path, folders, files in os.walk(top):
            for one in (*folders, *files):
                _restrict(Path(path, one))


def _restrict(path: Path) -> None:
    try:
        found = path.lstat()
        if found.st_uid == os.getuid() and found.st_mode & 0o077 and not path.is_symlink():
            path.chmod(stat.S_IMODE(found.st_mode) & 0o700)
    except FileNotFoundError:
        # The Valkey of a killed embedq may still be shutting down.
        return


def _who(folder: Path, owner: str) -> str:
    if owner.isdigit() and not _exists(int(owner)):
        return (
            f"data directory {folder} is still in use: the Valkey of embedq process {owner}, "
            "which was killed, is ending; try again in some seconds"
        )
    return (
        f"data directory {folder} is in use by another embedq, process {owner or 'unknown'}; "
        "stop that one or choose another with --data-dir"
    )


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
