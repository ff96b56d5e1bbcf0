"""The texts of each call of the tokenizer."""

from __future__ import annotations

from collections import deque

from tests.fakes import job_of, model_info
from worker.engine.job import Job
from worker.engine.tokenize import next_slices


def calls_of(jobs: deque[Job], count: int) -> list[dict[str, int]]:
    """Texts of each job in the next calls."""
    return [
        {part.job.id: part.stop - part.start for part in next_slices(jobs)} for _ in range(count)
    ]


def named(job_id: str, texts: int, **options: object) -> Job:
    return job_of([""] * texts, job_id, **options)  # type: ignore[arg-type]


def test_one_call_takes_texts_of_many_jobs() -> None:
    jobs = deque(named(f"{n}", 1) for n in range(600))
    assert [len(call) for call in calls_of(jobs, 3)] == [512, 88, 0]


def test_large_jobs_take_turns_and_do_not_hold_up_a_small_one() -> None:
    large = [named(f"large{n}", 600) for n in range(3)]
    assert calls_of(deque([*large, named("small", 1)]), 4) == [
        {"large0": 256, "large1": 256},
        {"large2": 256, "small": 1, "large0": 255},
        {"large1": 256, "large2": 256},
        {"large0": 89, "large1": 88, "large2": 88},
    ]


def test_a_job_goes_on_where_it_was() -> None:
    jobs = deque([named("a", 300)])
    (first,), (second,) = next_slices(jobs), next_slices(jobs)
    assert (first.start, first.stop, second.start, second.stop) == (0, 256, 256, 300)


def test_huge_texts_are_tokenized_a_few_at_a_time() -> None:
    huge, large, small = "x" * 2**22, "x" * 2**18, "x"
    jobs = deque([job_of([huge, *[large] * 9, huge, small], "a"), named("b", 1)])
    assert calls_of(jobs, 6) == [
        {"a": 1, "b": 1},
        {"a": 4},
        {"a": 4},
        {"a": 1},
        {"a": 1},
        {"a": 1},
    ]


def test_a_call_has_one_model_and_one_prompt() -> None:
    jobs = deque(
        [
            named("a", 1),
            named("b", 1),
            named("c", 1, prompt="query:"),
            named("d", 1, prompt="query:"),
            named("e", 1),
            named("f", 1, info=model_info("other")),
        ]
    )
    assert [list(call) for call in calls_of(jobs, 4)] == [["a", "b"], ["c", "d"], ["e"], ["f"]]


def test_a_cancelled_job_is_passed_over() -> None:
    gone, other = named("gone", 600), named("other", 600)
    jobs = deque([gone, other])
    next_slices(jobs)
    gone.cancelled = True
    assert calls_of(jobs, 3) == [{"other": 256}, {"other": 88}, {}]
