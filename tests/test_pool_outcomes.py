"""How many jobs one script ends."""

from __future__ import annotations

from typing import Any

from worker.contract.jobs import Status
from worker.contract.store import Ending
from worker.pool import outcomes


def chunks_of(sizes: list[int]) -> list[list[int]]:
    """Sizes of the results in each chunk."""
    ticket: Any = None
    endings = [(ticket, Ending("id", Status.SUCCEEDED, meta=b"x" * size)) for size in sizes]
    return [[len(ending.meta) for _, ending in chunk] for chunk in outcomes._chunks(endings)]


def test_jobs_end_together_up_to_a_number() -> None:
    most = outcomes._JOBS_A_SCRIPT
    assert [len(chunk) for chunk in chunks_of([10] * (2 * most + 1))] == [most, most, 1]


def test_large_results_are_written_apart() -> None:
    third = outcomes._BYTES_A_SCRIPT // 3
    assert chunks_of([third] * 7) == [[third] * 3, [third] * 3, [third]]


def test_a_result_larger_than_a_script_may_write_is_written_alone() -> None:
    huge = outcomes._BYTES_A_SCRIPT + 1
    assert chunks_of([5, huge, 5]) == [[5], [huge], [5]]


def test_nothing_to_end_is_nothing_to_write() -> None:
    assert chunks_of([]) == []
