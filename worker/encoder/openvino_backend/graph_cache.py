"""Converted models on disk: marked when they are used, removed when they are old or too large.

Several processes may share a folder and prune it at the same time. An entry is removed in one step,
by a rename, so that a process reads a whole entry or converts the model again.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

#: Seconds without use after which an entry is removed.
LONGEST_UNUSED = 90 * 24 * 3600
#: Bytes of all entries; above it the least recently used entries are removed.
MOST_BYTES = 16 * 2**30
#: Seconds since its last use in which an entry always stays: workers that start together must not
#: remove each other's models.
SPARED = 24 * 3600

#: Names of entries, which are digests, and prefixes of unfinished and of removed ones.
_ENTRY = re.compile(r"[0-9a-f]{32}")
_DRAFT, _LEAVING = "draft-", "leaving-"


class _Entry(NamedTuple):
    """A folder of the cache: last use in seconds since the epoch, size in bytes."""

    used: float
    folder: Path
    size: int


def draft_in(root: Path) -> Path:
    """Make a folder for a new entry, to be renamed to it. Raises OSError."""
    return Path(tempfile.mkdtemp(prefix=_DRAFT, dir=root))


def mark_used(folder: Path) -> None:
    """Mark an entry as used now, if it exists and this process may write to it."""
    with suppress(OSError):
        os.utime(folder)


def prune(root: Path) -> None:
    """Remove old entries, entries above `MOST_BYTES`, and leftovers of crashes.

    Files without the name of an entry stay, and entries that this process cannot remove.
    """
    now = time.time()
    entries = sorted(_entries(root), reverse=True)
    held = 0
    for used, folder, size in entries:
        held += size
        if now - used > LONGEST_UNUSED or (held > MOST_BYTES and now - used > SPARED):
            held -= size
            _remove(folder)
    for path in root.glob(f"{_LEAVING}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in root.glob(f"{_DRAFT}*"):
        with suppress(OSError):
            if now - path.stat().st_mtime > SPARED:
                shutil.rmtree(path, ignore_errors=True)


def _entries(root: Path) -> Iterator[_Entry]:
    """Entries that no other process removes during the scan."""
    for folder in root.iterdir():
        if not _ENTRY.fullmatch(folder.name):
            continue
        with suppress(OSError):
            size = sum(file.lstat().st_size for file in folder.iterdir())
            yield _Entry(folder.stat().st_mtime, folder, size)


def _remove(folder: Path) -> None:
    leaving = folder.with_name(f"{_LEAVING}{folder.name}.{os.getpid()}")
    # Another process may be faster.
    with suppress(OSError):
        folder.rename(leaving)
    shutil.rmtree(leaving, ignore_errors=True)
