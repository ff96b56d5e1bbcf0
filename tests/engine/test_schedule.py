"""Which waiting texts make the next batch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.fakes import job_of, model_info
from worker.contract.lanes import Lane
from worker.engine.job import Job, Piece
from worker.engine.schedule import Schedule, Schedules
from worker.tokens import TokenBlock


def block_of(lengths: Sequence[int]) -> TokenBlock:
    total, count = sum(lengths), len(lengths)
    return TokenBlock(
        np.zeros(total, dtype=np.int32),
        np.cumsum([0, *lengths], dtype=np.int64),
        np.zeros(count, dtype=np.int32),
        np.zeros(count, dtype=np.bool_),
    )


def waiting(job_id: str, lengths: Sequence[int], *, chunk: int = 256, **options: Any) -> Job:
    """A job whose texts have so many tokens, tokenised in chunks."""
    job = job_of([""] * len(lengths), job_id, **options)
    for first in range(0, len(lengths), chunk):
        block = block_of(lengths[first : first + chunk])
        job.chunks.append(Piece(job, block, block.offsets.tolist(), 0, len(block), first))
    return job


def schedule_of(*jobs: Job) -> Schedule:
    schedule = Schedule()
    for job in jobs:
        schedule.add(job)
    return schedule


def texts_of(pieces: Sequence[Piece]) -> Counter[str]:
    """Texts of each job in a batch."""
    found: Counter[str] = Counter()
    for piece in pieces:
        found[piece.job.id] += piece.texts
    return found


def tokens_of(pieces: Sequence[Piece]) -> int:
    return sum(piece.tokens for piece in pieces)


def batches_of(schedule: Schedule, budget: int, most: int = 100_000) -> list[list[Piece]]:
    batches = []
    while pieces := schedule.cut(budget):
        batches.append(pieces)
        assert len(batches) <= most, "it does not end"
    return batches


SHARES = [
    # what waits (tokens of each text), the budget, texts of each job in the first batch
    ("one job fills the budget", {"a": [10] * 20}, 100, {"a": 10}),
    ("a one-text job behind a large one", {"a": [10] * 4096, "b": [10]}, 100, {"a": 9, "b": 1}),
    ("equal shares", {"a": [10] * 50, "b": [10] * 50}, 100, {"a": 5, "b": 5}),
    ("equal shares of tokens", {"a": [30] * 50, "b": [10] * 50}, 120, {"a": 2, "b": 6}),
    (
        "what one leaves is for the others",
        {"a": [10] * 50, "b": [10] * 2, "c": [10] * 50},
        120,
        {"a": 5, "b": 2, "c": 5},
    ),
    ("many small jobs fill a batch", {f"j{n}": [8] for n in range(40)}, 160, 20),
    ("a text larger than the budget goes alone", {"a": [500, 10], "b": [10]}, 100, {"a": 1}),
    ("it does not hold up smaller ones", {"b": [10], "a": [500]}, 100, {"b": 1}),
    ("a text that fits goes beside one that does not", {"a": [60], "b": [60], "c": [30]}, 100, 2),
    ("nothing waits", {}, 100, {}),
]


@pytest.mark.parametrize(("name", "jobs", "budget", "expected"), SHARES, ids=[s[0] for s in SHARES])
def test_the_first_batch_is_shared(
    name: str, jobs: dict[str, list[int]], budget: int, expected: dict[str, int] | int
) -> None:
    pieces = schedule_of(*(waiting(job_id, lengths) for job_id, lengths in jobs.items())).cut(
        budget
    )
    found = texts_of(pieces)
    if isinstance(expected, int):
        assert found.total() == expected
    else:
        assert dict(found) == expected


def test_a_late_job_is_in_the_next_batch_however_long_the_line() -> None:
    early = [waiting(f"early{n}", [10] * 100) for n in range(5)]
    schedule = schedule_of(*early)
    schedule.cut(100)
    late = waiting("late", [10])
    schedule.add(late)
    assert texts_of(schedule.cut(100))["late"] == 1


def test_the_oldest_job_is_in_every_batch_while_others_come() -> None:
    oldest = waiting("oldest", [10] * 50)
    schedule = schedule_of(oldest)
    batches = 0
    while oldest.chunks:
        for newer in range(30):
            schedule.add(waiting(f"{batches}.{newer}", [10]))
        assert texts_of(schedule.cut(100))["oldest"] >= 1
        batches += 1
    assert batches <= 50


def test_texts_too_large_to_share_a_batch_take_turns() -> None:
    large = waiting("large", [60] * 4096)
    schedule = schedule_of(large)
    schedule.cut(100)
    small = [waiting(f"small{n}", [60]) for n in range(3)]
    for job in small:
        schedule.add(job)
    seen = [texts_of(schedule.cut(100)) for _ in range(2 * len(small))]
    assert sum(seen, Counter()) == {"large": 3, "small0": 1, "small1": 1, "small2": 1}
    assert seen[0]["small0"] + seen[1]["small0"] == 1, "more than two batches"


def test_pieces_of_a_job_are_joined_where_they_follow_one_another() -> None:
    schedule = schedule_of(waiting("a", [10] * 30), waiting("b", [10]))
    pieces = schedule.cut(200)
    assert len(pieces) == 2
    assert texts_of(pieces) == {"a": 19, "b": 1}


def test_pieces_around_a_text_that_was_refused_keep_their_places() -> None:
    job = job_of([""] * 5)
    block = block_of([1] * 4)
    ends = block.offsets.tolist()
    job.chunks += [Piece(job, block, ends, 0, 3, 0), Piece(job, block, ends, 3, 4, 4)]
    assert [(p.first, p.texts) for p in schedule_of(job).cut(100)] == [(0, 3), (4, 1)]


def test_a_batch_goes_over_the_chunks_of_a_job() -> None:
    job = waiting("a", [1] * 10, chunk=4)
    pieces = schedule_of(job).cut(8)
    assert [(p.first, p.texts) for p in sorted(pieces, key=lambda p: p.first)] == [(0, 4), (4, 4)]
    assert job.chunks[0].first == 8


def test_texts_without_tokens_are_cut_like_any_other() -> None:
    schedule = schedule_of(waiting("a", [0, 0, 3, 0]), waiting("b", [0]))
    assert sum((texts_of(b) for b in batches_of(schedule, 2)), Counter()) == {"a": 4, "b": 1}


def test_a_discarded_job_is_in_no_batch() -> None:
    gone = waiting("gone", [10] * 30)
    schedule = schedule_of(gone, waiting("other", [10]))
    schedule.cut(50)
    schedule.cut(50)
    schedule.discard(gone)
    schedule.discard(gone)
    assert "gone" not in sum((texts_of(b) for b in batches_of(schedule, 50)), Counter())


def test_a_job_comes_back_when_more_of_it_is_tokenised() -> None:
    job = waiting("a", [10] * 3)
    schedule = schedule_of(job)
    schedule.cut(100)
    block = block_of([10])
    job.chunks.append(Piece(job, block, block.offsets.tolist(), 0, 1, 3))
    schedule.add(job)
    schedule.add(job)
    assert [p.first for p in schedule.cut(100)] == [3]
    assert schedule.cut(100) == []


def test_models_take_turns_each_within_its_own_budget() -> None:
    schedules = Schedules(["small", "large"])
    for name in ("small", "large"):
        job = waiting(name, [10] * 30)
        job.info = model_info(name)
        schedules.add(job)
    budgets = {"small": 20, "large": 100}
    batches = [dict(texts_of(schedules.cut(budgets))) for _ in range(6)]
    assert batches[:4] == [{"small": 2}, {"large": 10}, {"small": 2}, {"large": 10}]


@pytest.mark.parametrize("seed", range(40))
def test_every_text_is_in_one_batch_and_none_waits_for_long(seed: int) -> None:
    """Random jobs that come at random times: nothing lost, nothing twice, no batch too large."""
    dice = random.Random(seed)
    budget = dice.choice([10, 64, 500])
    longest = dice.choice([3, budget, 2 * budget])
    lanes, tenants, patience = dice.choice(
        [([Lane.NORMAL], [""], 1), ([Lane.NORMAL], ["", "a", "b"], 1), ([*Lane], ["", "a"], 6)]
    )
    schedule = Schedule()
    jobs: list[Job] = []
    seen: Counter[tuple[str, int]] = Counter()
    waits: dict[str, int] = {}
    discarded: set[str] = set()
    for _ in range(100):
        for _ in range(dice.randint(0, 3)):
            lengths = [dice.randint(1, longest) for _ in range(dice.choice([1, 1, 1, 2, 30]))]
            job = waiting(
                *(f"{len(jobs)}", lengths),
                chunk=7,
                lane=dice.choice(lanes),
                tenant=dice.choice(tenants),
            )
            jobs.append(job)
            schedule.add(job)
        if dice.random() < 0.1 and jobs:
            gone = dice.choice(jobs)
            discarded.add(gone.id)
            gone.chunks.clear()
            schedule.discard(gone)
        line = [job for job in jobs if job.chunks]
        pieces = schedule.cut(budget)
        _note(pieces, budget, seen)
        served = texts_of(pieces)
        for job in line:
            waits[job.id] = 0 if served[job.id] else waits.get(job.id, 0) + 1
            # Of each line the one at the front, or the oldest and then it; of each lane, a line.
            assert waits[job.id] <= (4 * len(line) + 4) * len(tenants) * patience
    for pieces in batches_of(schedule, budget):
        _note(pieces, budget, seen)
    for job in jobs:
        if job.id not in discarded:
            assert all(seen[job.id, index] == 1 for index in range(len(job.texts)))
    assert max(seen.values()) == 1


def _note(pieces: Sequence[Piece], budget: int, seen: Counter[tuple[str, int]]) -> None:
    texts = texts_of(pieces).total()
    assert texts <= 1 or tokens_of(pieces) <= budget
    for piece in pieces:
        seen.update(
            (piece.job.id, index) for index in range(piece.first, piece.first + piece.texts)
        )
