"""The scheduling algorithm: the contents of batches, and the bounds of start-time fair queueing."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pytest

from tests.engine.stand import block_of, waiting
from tests.fakes import job_of
from worker.contract.lanes import Lane
from worker.engine.fair_queue import WEIGHTS, FairQueue, ModelQueues
from worker.engine.job import Job, Piece

BUDGET = 96
#: Tokens that a tenant gets before the others are served.
QUANTUM = BUDGET // 8
#: Tokens of a job's turn.
TURN = BUDGET * 3 // 4


def put(queue: FairQueue, job: Job) -> Job:
    queue.add(job, sum(piece.tokens for piece in job.waiting))
    return job


def queue_of(*jobs: Job) -> FairQueue:
    queue = FairQueue()
    for job in jobs:
        put(queue, job)
    return queue


def texts_of(pieces: Sequence[Piece]) -> Counter[str]:
    """Texts of each job in a batch."""
    return _counted(pieces, lambda piece: piece.job.id, lambda piece: piece.texts)


def tokens_by(pieces: Sequence[Piece], key: Callable[[Piece], Any]) -> Counter[Any]:
    return _counted(pieces, key, lambda piece: piece.tokens)


def _counted(
    pieces: Sequence[Piece], key: Callable[[Piece], Any], count: Callable[[Piece], int]
) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for piece in pieces:
        found[key(piece)] += count(piece)
    return found


def lane(piece: Piece) -> Lane:
    return piece.job.lane


def tenant(piece: Piece) -> str:
    return piece.job.tenant


SHARES = [
    # waiting texts (tokens of each), texts of each job in the first batch
    ("one job fills the budget", {"a": [8] * 20}, {"a": 12}),
    ("a one-text job behind a large one", {"a": [8] * 4096, "b": [8]}, {"a": 11, "b": 1}),
    (
        "a turn of the first, and the second's begins",
        {"a": [12] * 50, "b": [12] * 50},
        {"a": 6, "b": 2},
    ),
    ("one that ends in its turn", {"a": [12] * 3, "b": [12] * 50}, {"a": 3, "b": 5}),
    ("many small jobs fill a batch", {f"j{n}": [8] for n in range(40)}, 12),
    ("a text larger than the budget goes alone", {"a": [500, 8], "b": [8]}, {"a": 1}),
    ("a text that does not fit ends the batch", {"a": [60], "b": [60], "c": [8]}, {"a": 1}),
    ("nothing waits", {}, {}),
]


@pytest.mark.parametrize(("name", "jobs", "expected"), SHARES, ids=[s[0] for s in SHARES])
def test_the_first_batch_is_shared(
    name: str, jobs: dict[str, list[int]], expected: dict[str, int] | int
) -> None:
    queue = queue_of(*(waiting(job_id, lengths) for job_id, lengths in jobs.items()))
    found = texts_of(queue.take(BUDGET))
    if isinstance(expected, int):
        assert found.total() == expected
    else:
        assert dict(found) == expected


def test_pieces_of_a_job_are_joined_if_they_follow_one_another() -> None:
    pieces = queue_of(waiting("a", [8] * 30), waiting("b", [8])).take(160)
    assert len(pieces) == 2
    assert texts_of(pieces) == {"a": 19, "b": 1}


def test_pieces_around_a_text_that_was_refused_keep_their_places() -> None:
    job = job_of([""] * 5)
    block = block_of([1] * 4)
    ends = block.offsets.tolist()
    job.waiting += [Piece(job, block, ends, 0, 3, 0), Piece(job, block, ends, 3, 4, 4)]
    assert [(p.first, p.texts) for p in queue_of(job).take(100)] == [(0, 3), (4, 1)]


def test_a_batch_goes_over_the_chunks_of_a_job() -> None:
    job = waiting("a", [1] * 10, chunk=4)
    pieces = queue_of(job).take(8)
    assert [(p.first, p.texts) for p in sorted(pieces, key=lambda p: p.first)] == [(0, 4), (4, 4)]
    assert job.waiting[0].first == 8


def test_texts_without_tokens_are_taken_like_any_other() -> None:
    queue = queue_of(waiting("a", [0, 0, 3, 0]), waiting("b", [0]))
    found = sum((texts_of(queue.take(2)) for _ in range(9)), Counter())
    assert found == {"a": 4, "b": 1}


def test_a_discarded_job_is_in_no_batch() -> None:
    gone = waiting("gone", [8] * 30)
    queue = queue_of(gone, waiting("other", [8]))
    queue.take(48)
    tokens = sum(piece.tokens for piece in gone.waiting)
    queue.discard(gone, tokens)
    queue.discard(gone, 0)
    assert queue.tokens == 0
    assert queue.take(BUDGET) == []


def test_a_discarded_job_leaves_the_next_batch_to_the_other_lanes() -> None:
    gone = waiting("gone", [8], lane=Lane.INTERACTIVE)
    queue = queue_of(gone, waiting("other", [8]))
    queue.discard(gone, 8)
    assert texts_of(queue.take(BUDGET)) == {"other": 1}


def test_a_job_comes_back_when_more_of_it_is_tokenized() -> None:
    job = waiting("a", [8] * 3)
    queue = queue_of(job)
    queue.take(BUDGET)
    block = block_of([8])
    job.waiting.append(Piece(job, block, block.offsets.tolist(), 0, 1, 3))
    queue.add(job, 8)
    queue.add(job, 0)
    assert [p.first for p in queue.take(BUDGET)] == [3]
    assert queue.take(BUDGET) == []


def test_a_job_that_is_tokenized_slowly_gets_no_more_than_the_others() -> None:
    slow = job_of([""] * 100, "slow")
    queue = queue_of(waiting("other", [8] * 999))
    seen = texts_of(queue.take(BUDGET, room=TURN))
    for first in range(0, 90, 9):
        block = block_of([8] * 9)
        piece = Piece(slow, block, block.offsets.tolist(), 0, 9, first)
        slow.waiting.append(piece)
        slow.tokenized = first + 9
        queue.add(slow, piece.tokens)
        seen += texts_of(queue.take(BUDGET, room=TURN))
    assert seen["slow"] <= seen["other"] + 9


def test_a_job_that_is_done_is_not_kept() -> None:
    """Otherwise its texts and vectors would stay in memory while its tenant has others waiting."""
    queue = queue_of(waiting("large", [8] * 4_000))
    for _ in range(20):
        job = waiting("done", [8])
        job.tokenized = 1
        put(queue, job)
        del job
        queue.take(BUDGET)
    queue.take(BUDGET)
    kept = [one for one in gc.get_objects() if type(one) is Job and one.id == "done"]
    assert len(kept) <= 1


def test_models_take_turns() -> None:
    queues = ModelQueues(["a", "b", "c"])
    queues.served("a")
    queues.served("c")
    assert [name for name, _ in queues.in_turn()] == ["b", "a", "c"]


# -- lanes --------------------------------------------------------------------------------------


def test_an_interactive_job_has_the_next_batch_for_itself() -> None:
    queue = queue_of(waiting("bulk", [8] * 999, lane=Lane.BULK), waiting("normal", [8] * 999))
    for number in range(50):
        queue.take(BUDGET)
        put(queue, waiting(f"{number}", [8] * 2, lane=Lane.INTERACTIVE))
        assert texts_of(queue.take(BUDGET)) == {f"{number}": 2}


def test_bulk_jobs_have_what_the_others_leave() -> None:
    queue = queue_of(waiting("bulk", [8] * 999, lane=Lane.BULK), waiting("normal", [8] * 4))
    assert texts_of(queue.take(BUDGET)) == {"normal": 4, "bulk": 8}
    assert texts_of(queue.take(BUDGET)) == {"bulk": 12}


def test_texts_of_other_lanes_are_left() -> None:
    queue = queue_of(waiting("normal", [8] * 4), waiting("asked", [8], lane=Lane.INTERACTIVE))
    assert texts_of(queue.take(BUDGET, (Lane.INTERACTIVE,))) == {"asked": 1}
    assert queue.take(BUDGET, (Lane.INTERACTIVE,)) == []
    assert texts_of(queue.take(BUDGET)) == {"normal": 4}


def test_while_all_wait_each_lane_is_served_by_its_weight() -> None:
    """|W_i / w_i - W_j / w_j| <= B / w_i + B / w_j at any time, for batches of B tokens."""
    queue = queue_of(*(waiting(one.name, [8] * 9_000, lane=one) for one in Lane))
    served: Counter[Lane] = Counter()
    for _ in range(400):
        served += tokens_by(queue.take(BUDGET), lane)
        for one, other in combinations(Lane, 2):
            gap = abs(served[one] / WEIGHTS[one] - served[other] / WEIGHTS[other])
            assert gap <= BUDGET / WEIGHTS[one] + BUDGET / WEIGHTS[other]
    share = served[Lane.BULK] / served.total()
    assert share == pytest.approx(WEIGHTS[Lane.BULK] / sum(WEIGHTS.values()), rel=0.05)


@pytest.mark.parametrize("seed", range(10))
def test_bulk_has_its_share_under_any_interactive_load(seed: int) -> None:
    """At least its weight's part of the served tokens, minus two batches."""
    dice = random.Random(seed)
    queue = queue_of(waiting("bulk", [8] * 9_000, lane=Lane.BULK))
    served: Counter[Lane] = Counter()
    for number in range(400):
        for one in range(dice.choice([0, 1, 1, 30])):
            lengths = [dice.randint(1, 200) for _ in range(dice.choice([1, 1, 40]))]
            put(queue, waiting(f"{number}.{one}", lengths, lane=Lane.INTERACTIVE))
        served += tokens_by(queue.take(BUDGET), lane)
        part = WEIGHTS[Lane.BULK] / (WEIGHTS[Lane.BULK] + WEIGHTS[Lane.INTERACTIVE])
        # A text of 200 tokens is a batch of its own.
        assert served[Lane.BULK] >= part * served.total() - 2 * 200


# -- tenants and jobs ---------------------------------------------------------------------------


def test_tenants_share_alike_however_many_jobs_they_have() -> None:
    queue = queue_of(
        *(waiting(f"flood{n}", [12], tenant="flood") for n in range(2000)),
        *(waiting(f"few{n}", [12] * 50, tenant="few") for n in range(2)),
    )
    for _ in range(20):
        assert tokens_by(queue.take(BUDGET), tenant) == {"flood": 48, "few": 48}


@pytest.mark.parametrize("one", list(Lane))
def test_a_flood_of_one_tenant_delays_another_by_no_batch(one: Lane) -> None:
    flood = (waiting(f"f{n}", [12] * 30, tenant="flood", lane=one) for n in range(100))
    queue = queue_of(*flood)
    for number in range(50):
        put(queue, waiting(f"{number}", [12, 12], tenant="other", lane=one))
        assert texts_of(queue.take(BUDGET))[f"{number}"] == 2


def test_a_small_job_of_the_same_tenant_is_in_the_next_batch() -> None:
    queue = queue_of(*(waiting(f"large{n}", [8] * 4096) for n in range(3)))
    for number in range(50):
        # Each of the large jobs has had its first turn.
        for _ in range(3 if number == 0 else 1):
            queue.take(BUDGET)
        put(queue, waiting(f"{number}", [8]))
        assert texts_of(queue.take(BUDGET))[f"{number}"] == 1


def test_jobs_of_the_same_size_end_one_after_the_other() -> None:
    queue = queue_of(*(waiting(f"{n}", [8] * 8) for n in range(6)))
    found = [texts_of(queue.take(BUDGET)) for _ in range(4)]
    assert found == [{"0": 8, "1": 4}, {"1": 4, "2": 8}, {"3": 8, "4": 4}, {"4": 4, "5": 8}]


@pytest.mark.parametrize("seed", range(20))
def test_tenants_that_wait_are_served_alike(seed: int) -> None:
    """|W_i - W_j| <= 2 q at any time, for two waiting tenants, with texts of at most q tokens."""
    dice = random.Random(seed)
    names = [f"t{n}" for n in range(dice.randint(2, 6))]
    queue = FairQueue()
    for name in names:
        for number in range(200):
            lengths = [dice.randint(1, QUANTUM) for _ in range(dice.choice([1, 3, 60]))]
            put(queue, waiting(f"{name}.{number}", lengths, tenant=name))
    served: Counter[str] = Counter()
    for _ in range(60):
        served += tokens_by(queue.take(BUDGET), tenant)
        assert max(served[n] for n in names) - min(served[n] for n in names) <= 2 * QUANTUM


@pytest.mark.parametrize("seed", range(20))
def test_a_job_waits_no_longer_than_for_its_part(seed: int) -> None:
    """A job of k tokens with n others has ended when (k + 2 t) (n + 1) tokens are served."""
    dice = random.Random(seed)
    others = dice.randint(1, 30)
    queue = queue_of(*(waiting(f"{n}", [4] * 4_000) for n in range(others)))
    for _ in range(dice.randint(0, 100)):
        queue.take(BUDGET)
    lengths = [dice.randint(1, QUANTUM) for _ in range(dice.randint(1, 60))]
    job = put(queue, waiting("job", lengths))
    served = 0
    while job.waiting:
        served += sum(piece.tokens for piece in queue.take(BUDGET))
    assert served <= (sum(lengths) + 2 * TURN) * (others + 1) + BUDGET


@pytest.mark.parametrize("seed", range(20))
def test_jobs_that_wait_are_served_alike(seed: int) -> None:
    """|W_i - W_j| <= 2 t at any time, for two waiting jobs, with turns of t tokens."""
    dice = random.Random(seed)
    names = [f"{n}" for n in range(dice.randint(2, 6))]
    queue = queue_of(
        *(waiting(name, [dice.randint(1, QUANTUM) for _ in range(2_000)]) for name in names)
    )
    served: Counter[str] = Counter()
    for _ in range(60):
        served += tokens_by(queue.take(BUDGET), lambda piece: piece.job.id)
        assert max(served[n] for n in names) - min(served[n] for n in names) <= 2 * TURN


# -- the reserved slot --------------------------------------------------------------------------


def test_a_reserved_slot_takes_all_that_waits_of_a_tenant_with_little() -> None:
    queue = queue_of(
        *(waiting(f"flood{n}", [8], tenant="flood", lane=Lane.INTERACTIVE) for n in range(20)),
        *(waiting(f"asked{n}", [8], tenant="other", lane=Lane.INTERACTIVE) for n in range(2)),
        waiting("normal", [8], tenant="third"),
    )
    assert texts_of(queue.take_small(32)) == {"asked0": 1, "asked1": 1}
    assert queue.take_small(32) == []
    assert queue.tokens == 21 * 8
    assert sum(texts_of(queue.take(BUDGET)).total() for _ in range(3)) == 21


def test_a_reserved_slot_takes_the_little_that_is_left_of_much() -> None:
    queue = queue_of(waiting("asked", [8] * 15, lane=Lane.INTERACTIVE))
    assert queue.take_small(32) == []
    queue.take(BUDGET)
    assert texts_of(queue.take_small(32)) == {"asked": 3}


def test_a_reserved_slot_leaves_tenants_that_the_others_serve() -> None:
    queue = queue_of(
        *(waiting(one, [8], tenant=one, lane=Lane.INTERACTIVE) for one in ("served", "other"))
    )
    assert texts_of(queue.take_small(32, {"served"})) == {"other": 1}
    assert queue.take_small(32, {"served"}) == []


def test_a_reserved_slot_takes_tenants_in_turn() -> None:
    queue = FairQueue()
    for number in range(6):
        for tenant_name in ("a", "b"):
            put(
                queue,
                waiting(f"{tenant_name}{number}", [8], tenant=tenant_name, lane=Lane.INTERACTIVE),
            )
        queue.take_small(32)
    assert queue.tokens <= 8 * 2


@pytest.mark.parametrize("seed", range(40))
def test_every_text_is_in_one_batch(seed: int) -> None:
    """Random jobs at random times: each is served exactly once, and no batch is too large."""
    dice = random.Random(seed)
    budget = dice.choice([10, 64, 500])
    longest = dice.choice([3, budget, 2 * budget])
    queue = FairQueue()
    jobs: list[Job] = []
    seen: Counter[tuple[str, int]] = Counter()
    discarded: set[str] = set()
    for _ in range(100):
        for _ in range(dice.randint(0, 3)):
            lengths = [dice.randint(1, longest) for _ in range(dice.choice([1, 1, 1, 2, 30]))]
            options = {"lane": dice.choice(list(Lane)), "tenant": dice.choice(["", "a", "b"])}
            jobs.append(put(queue, waiting(f"{len(jobs)}", lengths, chunk=7, **options)))
        if dice.random() < 0.1 and jobs:
            gone = dice.choice(jobs)
            discarded.add(gone.id)
            queue.discard(gone, sum(piece.tokens for piece in gone.waiting))
            gone.waiting.clear()
        _note(queue.take(budget), budget, seen)
    while pieces := queue.take(budget):
        _note(pieces, budget, seen)
    assert queue.tokens == 0
    for job in jobs:
        if job.id not in discarded:
            assert all(seen[job.id, index] == 1 for index in range(len(job.texts)))
    assert max(seen.values()) == 1


def _note(pieces: Sequence[Piece], budget: int, seen: Counter[tuple[str, int]]) -> None:
    texts = sum(piece.texts for piece in pieces)
    assert texts <= 1 or sum(piece.tokens for piece in pieces) <= budget
    lanes = {piece.job.lane for piece in pieces}
    assert Lane.INTERACTIVE not in lanes or len(lanes) == 1
    for piece in pieces:
        seen.update((piece.job.id, at) for at in range(piece.first, piece.first + piece.texts))
