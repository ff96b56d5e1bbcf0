"""The order of tests in a parallel run, and the process that each one runs in."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.processes import ROOT

#: Marks of a file with processes that its tests share.
_SHARED = re.compile(r"scope=\"module\"|: Service\b")


class Schedule(LoadScopeScheduling):  # type: ignore[misc]
    """Run the tests of a file in one process, in order; unshared integration tests in any process.

    The latter take seconds each, mostly waiting.
    """

    def __init__(self, config: pytest.Config, log: Any) -> None:
        # In the order of the collection, see `in_order`.
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        return file if is_shared(file) else nodeid


@cache
def is_shared(file: str) -> bool:
    """Whether the tests of a file share a costly fixture."""
    integration = file.startswith("tests/integration/")
    return not integration or bool(_SHARED.search((ROOT / file).read_text()))


def in_order(items: list[pytest.Item]) -> None:
    """Sort the longest tests to the front, and files with tests that run alone to the end."""
    alone = {item.path for item in items if item.get_closest_marker("alone")}
    items.sort(key=lambda item: 3 if item.path in alone else _weight(item))


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """The time of one test: in parallel with the run's other processes, or alone.

    The processes share `folder`. A test that waits to run alone holds the gate, so that no
    further test begins.
    """
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with (folder / "gate").open("w") as gate, (folder / "room").open("w") as room:
        fcntl.flock(gate, how)
        fcntl.flock(room, how)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


def _weight(item: pytest.Item) -> int:
    if item.get_closest_marker("slow"):
        return 0
    return 1 if item.nodeid.startswith("tests/integration/") else 2
