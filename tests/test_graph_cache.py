"""Converted models on disk: old ones are pruned, those in use stay, with several pruners."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from worker.encoder.openvino_backend import graph_cache

DAY = 24 * 3600.0


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the cache to three entries."""
    monkeypatch.setattr(graph_cache, "MOST_BYTES", 3 * 1000)


def entry(root: Path, number: int, *, days: float = 0.0, size: int = 1000) -> Path:
    """An entry last used so many days ago."""
    folder = root / f"{number:032x}"
    folder.mkdir(parents=True)
    (folder / "graph.xml").write_bytes(b"")
    (folder / "graph.bin").write_bytes(bytes(size))
    return aged(folder, days)


def aged(path: Path, days: float) -> Path:
    then = time.time() - days * DAY
    os.utime(path, (then, then))
    return path


def left(root: Path) -> list[int]:
    return sorted(int(folder.name, 16) for folder in root.iterdir())


def test_entries_that_nobody_has_used_for_long_go(tmp_path: Path) -> None:
    entry(tmp_path, 1, days=91)
    entry(tmp_path, 2, days=89)
    graph_cache.prune(tmp_path)
    assert left(tmp_path) == [2]


def test_past_the_bound_those_go_that_were_not_used_for_longest(tmp_path: Path) -> None:
    for number, days in enumerate((5, 9, 2, 30, 0)):
        entry(tmp_path, number, days=days)
    graph_cache.prune(tmp_path)
    assert left(tmp_path) == [0, 2, 4]


def test_an_entry_that_does_not_fit_makes_no_smaller_one_go(tmp_path: Path) -> None:
    entry(tmp_path, 1, days=2)
    entry(tmp_path, 2, days=3, size=50_000)
    entry(tmp_path, 3, days=4)
    graph_cache.prune(tmp_path)
    assert left(tmp_path) == [1, 3]


def test_use_makes_an_entry_young(tmp_path: Path) -> None:
    for number in range(5):
        entry(tmp_path, number, days=number + 2)
    graph_cache.mark_used(tmp_path / f"{4:032x}")
    graph_cache.prune(tmp_path)
    assert left(tmp_path) == [0, 1, 4]


def test_what_was_used_today_stays_however_much_it_is(tmp_path: Path) -> None:
    for number in range(5):
        entry(tmp_path, number, days=0.5)
    graph_cache.prune(tmp_path)
    assert left(tmp_path) == [0, 1, 2, 3, 4]


def test_what_crashes_left_goes_and_drafts_under_way_stay(tmp_path: Path) -> None:
    under_way, forgotten = graph_cache.draft_in(tmp_path), graph_cache.draft_in(tmp_path)
    (forgotten / "graph.bin").write_bytes(b"half")
    aged(forgotten, 2)
    (tmp_path / "leaving-1234").mkdir()
    graph_cache.prune(tmp_path)
    assert list(tmp_path.iterdir()) == [under_way]


def test_what_is_not_of_the_cache_is_not_touched(tmp_path: Path) -> None:
    aged(entry(tmp_path, 1).rename(tmp_path / "of-somebody"), 365)
    note = tmp_path / "note.txt"
    note.write_text("mine")
    aged(note, 365)
    graph_cache.prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["note.txt", "of-somebody"]


def test_many_prune_at_the_same_time(tmp_path: Path) -> None:
    for number in range(40):
        entry(tmp_path, number, days=number + 2)
    failures: list[BaseException] = []

    def prune() -> None:
        try:
            graph_cache.prune(tmp_path)
        except BaseException as error:  # noqa: BLE001 - asserted below
            failures.append(error)

    threads = [threading.Thread(target=prune) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert left(tmp_path) == [0, 1, 2]
