"""Lanes before the fair queue: what is tokenized next, and how much of each lane is held."""

from __future__ import annotations

from tests.engine.test_tokenising import calls_of, intake_of, named
from worker.contract.lanes import Lane
from worker.engine.room import Room


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
