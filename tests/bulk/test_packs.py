"""The grouping of lines into jobs."""

from __future__ import annotations

from tests.api_stand import MODEL
from worker.batches.packs import PACK_BYTES, PACK_TEXTS, AnsweredLine, LineWindow, Pack, Want, packs
from worker.contract.jobs import DEFAULT_OPTIONS, JobOptions

SMALL = JobOptions(dimensions=2)


def want(
    number: int, texts: int = 1, tokens: int = 1, options: JobOptions = DEFAULT_OPTIONS
) -> Want:
    entry = AnsweredLine(number, f"r{number}", ["x"] * texts)
    return Want(entry, options, MODEL, tokens)


def numbers(found: list[Pack]) -> list[list[int]]:
    return [[entry.number for entry in pack.entries] for pack in found]


def test_lines_share_jobs_up_to_the_texts_of_one() -> None:
    found = packs(LineWindow(), [want(number) for number in range(PACK_TEXTS + 1)], 10_000)
    assert [len(pack.entries) for pack in found] == [PACK_TEXTS, 1]


def test_lines_share_a_job_only_with_the_same_options() -> None:
    wants = [want(1), want(2, options=SMALL), want(3), want(4, options=JobOptions(dimensions=2))]
    assert numbers(packs(LineWindow(), wants, 1000)) == [[1, 3], [2, 4]]


def test_a_job_is_cut_at_its_bounds_but_a_line_is_never_split() -> None:
    wants = [want(1, tokens=6), want(2, tokens=5), want(3, tokens=99), want(4, tokens=1)]
    assert numbers(packs(LineWindow(), wants, 10)) == [[1], [2], [3], [4]]
    assert numbers(packs(LineWindow(), [want(1, texts=2048), want(2), want(3)], 10)) == [
        [1],
        [2, 3],
    ]
    long = Want(AnsweredLine(2, "long", ["x" * PACK_BYTES]), DEFAULT_OPTIONS, MODEL, 1)
    assert numbers(packs(LineWindow(), [want(1), long, want(3)], 10)) == [[1], [2], [3]]


def test_halves_of_a_job_have_its_lines_in_order() -> None:
    [pack] = packs(LineWindow(), [want(number) for number in range(5)], 1000)
    assert numbers(pack.halves()) == [[0, 1], [2, 3, 4]]


def test_a_window_is_answered_when_every_line_is() -> None:
    window = LineWindow([AnsweredLine(1, "a"), AnsweredLine(2, "b")])
    window.entries[0].settle(b"{}")
    assert not window.answered
    window.entries[1].settle(b"{}")
    assert window.answered
