"""Which texts the tokenizer gets next."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tests.fakes import job_of, model_info
from worker.engine.isolation import Isolation
from worker.engine.job import Job
from worker.engine.tokenising import Intake, Slice


def intake_of(*jobs: Job) -> Intake:
    lock = threading.Lock()
    # Nobody else uses it: the lock that its methods ask for is held for good.
    lock.acquire()
    intake = Intake(lock, Isolation(threading.Condition(lock)))
    for job in jobs:
        intake.put(job)
    return intake


def calls_of(intake: Intake, count: int) -> list[dict[str, int]]:
    """Texts of each job in the next calls."""
    return [_texts(intake.take()) for _ in range(count)]


def _texts(slices: Sequence[Slice]) -> dict[str, int]:
    return {part.job.id: part.stop - part.start for part in slices}


def named(job_id: str, texts: int, **options: object) -> Job:
    return job_of([""] * texts, job_id, **options)  # type: ignore[arg-type]


def test_one_call_takes_texts_of_many_jobs() -> None:
    intake = intake_of(*(named(f"{n}", 1) for n in range(600)))
    assert [len(call) for call in calls_of(intake, 2)] == [512, 88]


def test_large_jobs_take_turns_and_do_not_hold_up_a_small_one() -> None:
    large = [named(f"large{n}", 600) for n in range(3)]
    intake = intake_of(*large, named("small", 1))
    assert calls_of(intake, 4) == [
        {"large0": 256, "large1": 256},
        {"large2": 256, "small": 1, "large0": 255},
        {"large1": 256, "large2": 256},
        {"large0": 89, "large1": 88, "large2": 88},
    ]


def test_a_job_goes_on_where_it_was() -> None:
    intake = intake_of(named("a", 300))
    (first,), (second,) = intake.take(), intake.take()
    assert (first.start, first.stop, second.start, second.stop) == (0, 256, 256, 300)


def test_huge_texts_are_tokenised_a_few_at_a_time() -> None:
    huge, large, small = "x" * 2**22, "x" * 2**18, "x"
    intake = intake_of(job_of([huge, *[large] * 9, huge, small], "a"), named("b", 1))
    assert calls_of(intake, 5) == [
        {"a": 1, "b": 1},
        {"a": 4},
        {"a": 4},
        {"a": 1},
        {"a": 1},
    ]
    assert calls_of(intake, 1) == [{"a": 1}]


def test_a_call_has_one_model_and_one_prompt() -> None:
    other = model_info("other")
    intake = intake_of(
        named("a", 1),
        named("b", 1),
        named("c", 1, prompt="query:"),
        named("d", 1, prompt="query:"),
        named("e", 1),
        named("f", 1, info=other),
    )
    assert [list(call) for call in calls_of(intake, 4)] == [["a", "b"], ["c", "d"], ["e"], ["f"]]


def test_a_cancelled_job_is_passed_over() -> None:
    gone, other = named("gone", 600), named("other", 600)
    intake = intake_of(gone, other)
    intake.take()
    gone.cancelled = True
    assert calls_of(intake, 2) == [{"other": 256}, {"other": 88}]


def test_nothing_comes_once_it_is_closed() -> None:
    intake = intake_of(named("a", 1))
    intake.close()
    assert intake.take() == []
