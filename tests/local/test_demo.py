"""The sample job's table."""

from __future__ import annotations

import pytest

from worker.local.demo import cosine, table


def test_each_text_stands_beside_its_nearest_other() -> None:
    lines = table(["north", "north by east", "south"], [[0, 1], [0.2, 0.98], [0, -1]])
    assert [line.split("  ")[0].strip() for line in lines[2:]] == [
        "north",
        "north by east",
        "south",
    ]
    assert lines[2].split() == ["north", "north", "by", "east", "0.98"]
    assert lines[4].split()[:4] == ["south", "north", "by", "east"]


def test_columns_line_up() -> None:
    lines = table(["a", "a longer text"], [[1, 0], [0, 1]])
    assert len({len(line) for line in lines}) == 1


def test_cosine_takes_any_length() -> None:
    assert cosine([3, 0], [5, 0]) == pytest.approx(1)
    assert cosine([0, 0], [5, 0]) == 0
