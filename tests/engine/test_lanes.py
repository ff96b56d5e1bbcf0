"""Which lanes and tenants a batch serves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from tests.engine.test_schedule import schedule_of, texts_of, tokens_of, waiting
from tests.engine.test_tokenising import calls_of, intake_of, named
from worker.contract.lanes import Lane
from worker.engine.job import Job, Piece
from worker.engine.room import Room

BUDGET = 100


def interactive(job_id: str, lengths: Sequence[int], tenant: str = "") -> Job:
    return waiting(job_id, lengths, lane=Lane.INTERACTIVE, tenant=tenant)


def bulk(job_id: str, lengths: Sequence[int], tenant: str = "") -> Job:
    return waiting(job_id, lengths, lane=Lane.BULK, tenant=tenant)


def lanes_of(pieces: Sequence[Piece]) -> Counter[Lane]:
    """Tokens of each lane in a batch."""
    found: Counter[Lane] = Counter()
    for piece in pieces:
        found[piece.job.lane] += piece.tokens
    return found


def tenants_of(pieces: Sequence[Piece]) -> Counter[str]:
    """Tokens of each tenant in a batch."""
    found: Counter[str] = Counter()
    for piece in pieces:
        found[piece.job.tenant] += piece.tokens
    return found


# -- lanes --------------------------------------------------------------------------------------


def test_an_interactive_job_has_the_next_batch_for_itself() -> None:
    schedule = schedule_of(bulk("bulk", [10] * 1000), waiting("normal", [10] * 1000))
    schedule.cut(BUDGET)
    schedule.add(interactive("asked", [10] * 2))
    assert texts_of(schedule.cut(BUDGET)) == {"asked": 2}


def test_batches_between_interactive_jobs_are_short_until_no_more_come() -> None:
    schedule = schedule_of(bulk("bulk", [10] * 4000))
    schedule.add(interactive("asked", [10]))
    schedule.cut(BUDGET)
    sizes = []
    for _ in range(20):
        sizes.append(tokens_of(schedule.cut(BUDGET)))
        sizes.append(tokens_of(schedule.more(BUDGET)))
    assert sizes == [10, 0] * 16 + [100, 100] * 4


def test_a_text_larger_than_a_short_batch_is_encoded_in_it() -> None:
    schedule = schedule_of(interactive("asked", [10]), bulk("bulk", [BUDGET] * 2))
    assert [dict(texts_of(schedule.cut(BUDGET))) for _ in range(3)] == [
        {"asked": 1},
        {"bulk": 1},
        {"bulk": 1},
    ]


def test_interactive_jobs_that_follow_one_another_are_each_in_the_next_batch() -> None:
    schedule = schedule_of(bulk("bulk", [10] * 1000), waiting("normal", [10] * 1000))
    for number in range(50):
        schedule.add(interactive(f"{number}", [10]))
        assert texts_of(schedule.cut(BUDGET))[f"{number}"] == 1


def test_bulk_jobs_have_what_the_others_leave() -> None:
    schedule = schedule_of(bulk("bulk", [10] * 1000), waiting("normal", [10] * 4))
    assert texts_of(schedule.cut(BUDGET)) == {"normal": 4, "bulk": 6}
    assert texts_of(schedule.cut(BUDGET)) == {"bulk": 10}


def test_no_lane_starves_where_the_ones_before_it_never_end() -> None:
    schedule = schedule_of(
        interactive("asked", [10] * 4000),
        waiting("normal", [10] * 4000),
        bulk("bulk", [10] * 4000),
    )
    batches = [lanes_of(schedule.cut(BUDGET)) for _ in range(100)]
    total = sum(batches, Counter())
    assert total[Lane.INTERACTIVE] > total[Lane.NORMAL] + total[Lane.BULK]
    for lane in (Lane.NORMAL, Lane.BULK):
        assert total[lane] >= 900, total
        waits = [at for at, batch in enumerate(batches) if batch[lane]]
        assert max(after - before for before, after in pairwise(waits)) <= 6


def test_a_text_that_fits_in_no_share_of_bulk_is_encoded_all_the_same() -> None:
    schedule = schedule_of(waiting("normal", [10] * 4000), bulk("bulk", [BUDGET] * 3))
    found = sum((texts_of(schedule.cut(BUDGET)) for _ in range(15)), Counter())
    assert found["bulk"] == 3


# -- tenants ------------------------------------------------------------------------------------


def test_tenants_share_alike_however_many_jobs_they_have() -> None:
    schedule = schedule_of(
        *(waiting(f"flood{n}", [10], tenant="flood") for n in range(2000)),
        *(waiting(f"few{n}", [10] * 50, tenant="few") for n in range(2)),
    )
    for _ in range(20):
        assert tenants_of(schedule.cut(BUDGET)) == {"flood": 50, "few": 50}
    assert tenants_of(schedule.cut(BUDGET)) == {"flood": 100}


def test_a_flood_of_one_tenant_leaves_the_other_in_the_next_batch() -> None:
    schedule = schedule_of(*(waiting(f"f{n}", [10] * 30, tenant="flood") for n in range(100)))
    for number in range(20):
        schedule.add(waiting(f"{number}", [10, 10], tenant="other"))
        pieces = schedule.cut(BUDGET)
        assert texts_of(pieces)[f"{number}"] == 2
        assert tokens_of(pieces) == BUDGET


def test_a_flood_that_is_waited_for_leaves_the_other_batches_of_its_own() -> None:
    schedule = schedule_of(*(interactive(f"f{n}", [10] * 30, "flood") for n in range(100)))
    schedule.add(bulk("overflow", [10] * 1000, "flood"))
    for number in range(50):
        schedule.add(interactive(f"{number}", [10, 10], "other"))
        waited = []
        while waited[-1:] != [{f"{number}": 2}]:
            waited.append(texts_of(schedule.cut(BUDGET)))
        # Before its own a short one at most, also where the next lane is overdue.
        assert [batch.total() for batch in waited[:-1]] in ([], [1])
    assert tokens_of(schedule.cut(BUDGET)) == 10
    sizes = [tokens_of(schedule.cut(BUDGET)) for _ in range(30)]
    assert sizes[:12] == [10] * 12
    assert set(sizes[20:]) == {BUDGET}


def test_tenants_who_all_wait_for_a_lot_have_whole_batches() -> None:
    schedule = schedule_of(*(interactive(f"{n}", [10] * 100, f"{n}") for n in range(2)))
    assert [tokens_of(schedule.cut(BUDGET)) for _ in range(5)] == [BUDGET] * 5


def test_what_a_tenant_leaves_is_for_the_others() -> None:
    schedule = schedule_of(
        waiting("a", [10] * 100, tenant="a"),
        waiting("b", [10], tenant="b"),
        waiting("c", [10] * 100, tenant="c"),
    )
    pieces = schedule.cut(120)
    assert tenants_of(pieces) == {"a": 60, "b": 10, "c": 50}


def test_more_tenants_than_fit_take_turns() -> None:
    schedule = schedule_of(*(waiting(f"{n}", [60] * 5, tenant=f"{n}") for n in range(7)))
    batches = [tenants_of(schedule.cut(BUDGET)) for _ in range(14)]
    assert sum(batches, Counter()) == {f"{n}": 120 for n in range(7)}


def test_a_tenant_is_told_apart_in_each_lane() -> None:
    schedule = schedule_of(
        bulk("a", [10] * 100, "one"), bulk("b", [10] * 100, "two"), waiting("c", [10] * 4)
    )
    assert tenants_of(schedule.cut(BUDGET)) == {"": 40, "one": 30, "two": 30}


# -- before the schedule ------------------------------------------------------------------------


def test_texts_of_an_interactive_job_are_tokenised_next() -> None:
    intake = intake_of(named("bulk", 2000, lane=Lane.BULK), named("normal", 1))
    assert calls_of(intake, 2) == [{"normal": 1}, {"bulk": 256}]
    intake.put(named("asked", 1, lane=Lane.INTERACTIVE))
    assert calls_of(intake, 2) == [{"asked": 1}, {"bulk": 256}]


def test_each_lane_has_room_of_its_own() -> None:
    room = Room()
    full = room.left(Lane.BULK, [4096])
    for number in range(20):
        room.weigh(named(f"{number}", 1, lane=Lane.BULK), 4096)
    for lane in (Lane.INTERACTIVE, Lane.NORMAL):
        assert room.left(lane, [4096]) == full
    assert room.left(Lane.BULK, [4096]) < full
