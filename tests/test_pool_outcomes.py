"""The number of jobs that one script completes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from worker.contract.jobs import Status
from worker.pool import outcomes, result_writer
from worker.pool.in_flight import InFlightJob, Limits
from worker.store.jobs import Completion


def chunks_of(sizes: list[int]) -> list[list[int]]:
    """Sizes of the results in each chunk."""
    in_flight: Any = None
    endings = [(in_flight, Completion("id", Status.SUCCEEDED, meta=b"x" * size)) for size in sizes]
    return [[len(ending.meta) for _, ending in chunk] for chunk in result_writer.chunks_of(endings)]


def test_jobs_end_together_up_to_a_number() -> None:
    most = result_writer._JOBS_A_SCRIPT
    assert [len(chunk) for chunk in chunks_of([10] * (2 * most + 1))] == [most, most, 1]


def test_large_results_are_written_apart() -> None:
    third = result_writer._BYTES_A_SCRIPT // 3
    assert chunks_of([third] * 7) == [[third] * 3, [third] * 3, [third]]


def test_a_result_larger_than_a_script_may_write_is_written_alone() -> None:
    huge = result_writer._BYTES_A_SCRIPT + 1
    assert chunks_of([5, huge, 5]) == [[5], [huge], [5]]


def test_nothing_to_end_is_nothing_to_write() -> None:
    assert chunks_of([]) == []


class FakeTicket:
    """A ticket that raises, or was open or not."""

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
    in_flight_jobs = [
        FakeTicket("one", True),
        FakeTicket("two", KeyError("why")),
        FakeTicket("three", False),
    ]
    in_flight_jobs.append(FakeTicket("four", True))
    told: Any = outcomes._told(in_flight_jobs, settled=True)  # type: ignore[arg-type]
    assert [in_flight.id for in_flight in told] == ["one", "four"]
    assert all(in_flight.asked for in_flight in in_flight_jobs)
    assert "two" in caplog.text
    assert "KeyError" in caplog.text


class Request:
    """The attributes that a running job reads; Celery's callbacks raise."""

    def __init__(self) -> None:
        self.id, self.type = "one", "embedq.embed"
        self.message = SimpleNamespace(delivery_tag="none of ours")
        self.request_dict: dict[str, Any] = {}
        self.is_watched = False
        self.acknowledged = False

    def on_accepted(self, pid: int, started: float) -> None:
        raise OSError("nobody listens")

    def on_success(self, answer: tuple[int, Any, float]) -> None:
        raise OSError("nobody listens")

    def acknowledge(self) -> None:
        self.acknowledged = True


def test_a_job_whose_start_celery_cannot_be_told_of_is_over_when_it_has_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    request: Any = Request()
    owner: Any = None
    open_jobs: dict[InFlightJob, None] = {}
    in_flight = InFlightJob(owner, open_jobs, request, lambda: None, Limits(None, None))
    outcomes._accept([in_flight])
    assert outcomes._told([in_flight], settled=False) == [in_flight]
    assert request.acknowledged
    assert open_jobs == {}
    assert caplog.text.count("Celery could not be told that job one runs") == 1


def test_a_job_whose_end_celery_cannot_be_told_of_keeps_no_lease() -> None:
    request: Any = Request()
    owner: Any = None
    open_jobs: dict[InFlightJob, None] = {}
    in_flight = InFlightJob(owner, open_jobs, request, lambda: None, Limits(None, None))
    with pytest.raises(OSError, match="nobody listens"):
        in_flight.end((0, None, 0.0))
    assert request.acknowledged
    assert open_jobs == {}
