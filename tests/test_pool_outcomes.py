"""How many jobs one script ends."""

from __future__ import annotations

from typing import Any

import pytest

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


class Ticket:
    """One that raises, or was open or not."""

    def __init__(self, name: str, answer: bool | Exception) -> None:
        self.id = name
        self._answer = answer
        self.asked = False

    def succeed(self, now: float, *, settled: bool) -> bool:
        self.asked = True
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def test_a_job_that_celery_cannot_be_told_of_holds_up_none_of_its_batchmates(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tickets = [Ticket("one", True), Ticket("two", KeyError("why")), Ticket("three", False)]
    tickets.append(Ticket("four", True))
    told: Any = outcomes._told(tickets, settled=True)  # type: ignore[arg-type]
    assert [ticket.id for ticket in told] == ["one", "four"]
    assert all(ticket.asked for ticket in tickets)
    assert "two" in caplog.text
    assert "KeyError" in caplog.text
