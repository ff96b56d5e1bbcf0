"""Converted models on disk: marked when they are used, removed when they are old or too many.

Several processes may share a folder and do this at the same time. An entry goes in one step, by
being renamed, so that nobody reads half of one; who finds it gone converts the model again.
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

#: Seconds without use after which an entry goes.
LONGEST_UNUSED = 90 * 24 * 3600
#: Bytes of all entries past which those go that were not used for longest.
MOST_BYTES = 16 * 2**30
#: Seconds since its last use in which an entry stays whatever there is beside it: workers that
#: start together must not take each other's models away.
SPARED = 24 * 3600

#: Entries are named by digests; drafts and entries on their way out by what they are.
_ENTRY = re.compile(r"[0-9a-f]{32}")
_DRAFT, _LEAVING = "draft-", "leaving-"


class _Entry(NamedTuple):
    """A folder of the cache; `used` in seconds since the epoch."""

    used: float
    folder: Path
    size: int


def draft_in(root: Path) -> Path:
    """A new folder to write an entry in, to be renamed to it. Raises OSError."""
    return Path(tempfile.mkdtemp(prefix=_DRAFT, dir=root))


def mark_used(folder: Path) -> None:
    """An entry is read now. One that is gone or not ours to mark stays as it is."""
    with suppress(OSError):
        os.utime(folder)


def prune(root: Path) -> None:
    """Remove what is too old, or too much, from the folder of entries, and what crashes left.

    What cannot be removed stays. What is none of this cache is not touched.
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
    """Those that stay there long enough to be looked at."""
    for folder in root.iterdir():
        if not _ENTRY.fullmatch(folder.name):
            continue
        with suppress(OSError):
            size = sum(file.lstat().st_size for file in folder.iterdir())
            yield _Entry(folder.stat().st_mtime, folder, size)


def _remove(folder: Path) -> None:
    leaving = folder.with_name(f"{_LEAVING}{folder.name}.{os.getpid()}")
    # Somebody else may be faster.
    with suppress(OSError):
        folder.rename(leaving)
    shutil.rmtree(leaving, ignore_errors=True)
