"""The order of tests in a parallel run, and the process that each one runs in."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.processes import ROOT

#: What starts processes for a whole file of tests.
_SHARED = re.compile(r"scope=\"module\"|: Service\b")


class Schedule(LoadScopeScheduling):  # type: ignore[misc]
    """Tests of a file run in one process, in order; integration tests that share nothing anywhere.

    Those take seconds each, most of which they wait.
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
    """Whether the tests of a file share something that is worth to be made once."""
    integration = file.startswith("tests/integration/")
    return not integration or bool(_SHARED.search((ROOT / file).read_text()))


def in_order(items: list[pytest.Item]) -> None:
    """Sort the longest tests to the front, so that none of them is the last to end."""
    items.sort(key=_weight)


def _weight(item: pytest.Item) -> int:
    if item.get_closest_marker("slow"):
        return 0
    return 1 if item.nodeid.startswith("tests/integration/") else 2
