"""Batches that run at the same time, each in a slot of its own."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.engine.stand import Start, assert_vectors, crashes, texts
from tests.fakes import DEADLINE, POISON, FakeEncoder, RecordingSink, job_of
from tests.processes import eventually
from worker.contract.lanes import Lane
from worker.engine import queue
from worker.engine.encode import DeviceLost


class Gate:
    """Batches stand still in the device, each until it is released."""

    def __init__(self, encoder: FakeEncoder) -> None:
        self._changed = threading.Condition()
        self._inside: list[list[str]] = []
        self._closed = True
        encoder.before = self._enter

    def _enter(self, batch: list[str]) -> None:
        with self._changed:
            self._inside.append(batch)
            self._changed.notify_all()
            assert self._changed.wait_for(
                lambda: not self._closed or batch not in self._inside, DEADLINE
            )

    def inside(self, count: int) -> list[list[str]]:
        """Wait until so many batches stand still, and return them."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._inside) >= count, DEADLINE)
            return list(self._inside)

    def let_go(self, batch: list[str]) -> None:
        with self._changed:
            self._inside.remove(batch)
            self._changed.notify_all()

    def open(self) -> None:
        with self._changed:
            self._closed = False
            self._changed.notify_all()


@contextmanager
def gate(encoder: FakeEncoder) -> Iterator[Gate]:
    made = Gate(encoder)
    try:
        yield made
    finally:
        made.open()


@pytest.fixture(autouse=True)
def _no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot without a wake-up stays idle: a lost wake-up fails the test."""
    monkeypatch.setattr(queue, "_IDLE_SECONDS", 10 * DEADLINE)


@pytest.fixture
def encoder() -> FakeEncoder:
    encoder = FakeEncoder()
    encoder.slots = 2
    encoder.reserved = True
    return encoder


def test_two_batches_run_at_the_same_time(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with gate(encoder) as device:
        engine.submit(job_of(texts(100), "a"))
        device.inside(2)
        assert engine.waiting_tokens > 0
    assert_vectors(sink.outcome("a").vectors, texts(100))


def test_an_interactive_text_runs_beside_batches_that_fill_the_slots(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with gate(encoder) as device:
        engine.submit(job_of(texts(100), "bulk", lane=Lane.BULK))
        device.inside(2)
        engine.submit(job_of(["asked"], "asked", lane=Lane.INTERACTIVE))
        assert ["asked"] in device.inside(3)
        device.let_go(["asked"])
        assert_vectors(sink.outcome("asked").vectors, ["asked"])
        engine.submit(job_of(["normal"], "normal"))
        eventually(lambda: engine.waiting_tokens > 0)
        assert len(device.inside(2)) == 2, "the reserved slot takes other texts"
    sink.outcome("bulk")
    sink.outcome("normal")


def test_the_reserved_slot_leaves_a_tenant_that_the_other_slots_serve(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with gate(encoder) as device:
        engine.submit(job_of(texts(16), "a", lane=Lane.INTERACTIVE, tenant="a"))
        device.inside(2)
        engine.submit(job_of(["more"], "more", lane=Lane.INTERACTIVE, tenant="a"))
        eventually(lambda: engine.waiting_tokens > 0)
        engine.submit(job_of(["asked"], "asked", lane=Lane.INTERACTIVE, tenant="b"))
        assert device.inside(3)[-1] == ["asked"]
        device.let_go(["asked"])
        sink.outcome("asked")
        assert ["more"] not in device.inside(2)
    sink.outcome("more")


def test_idle_slots_share_what_waits(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with gate(encoder) as device:
        # 32 tokens: a whole batch for one slot.
        engine.submit(job_of(texts(8), "a"))
        assert [len(batch) for batch in device.inside(2)] == [4, 4]
    assert_vectors(sink.outcome("a").vectors, texts(8))


def test_a_job_that_begins_in_two_slots_is_started_once(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    both = threading.Barrier(2)

    def hold(event: str) -> None:
        if event == "admit":
            # Two slots that both start the job meet here; a single one waits in vain.
            with suppress(threading.BrokenBarrierError):
                both.wait(0.5)

    sink.before = hold
    start(encoder).submit(job_of(texts(16), "a"))
    sink.outcome("a")
    assert sink.of("admit") == sink.of("started") == ["a"]


def test_a_text_alone_may_use_the_cores_of_idle_slots(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    used: list[int] = []
    forward = encoder.forward

    def watched(*args: object, cores: int = 1) -> object:
        used.append(cores)
        return forward(*args, cores=cores)  # type: ignore[arg-type]

    encoder.forward = watched  # type: ignore[assignment, method-assign]
    engine = start(encoder)
    with gate(encoder) as device:
        eventually(lambda: engine._scheduler.slots.idle == 2)
        engine.submit(job_of(["one text"], "a"))
        first = device.inside(1)[0]
        engine.submit(job_of(["another"], "b"))
        device.inside(2)
        assert used == [2, 1]
        device.let_go(first)
    sink.outcome("a")


@pytest.mark.parametrize("seed", range(8))
def test_texts_of_a_job_in_several_slots_get_their_own_vectors(
    seed: int, start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    dice = random.Random(seed)
    engine = start(encoder)
    given = {}
    for number in range(40):
        some = texts(dice.choice([1, 3, 90]), first=100 * number)
        if dice.random() < 0.2:
            some[0] = POISON
        given[f"{number}"] = some
        engine.submit(job_of(some, f"{number}", lane=dice.choice(list(Lane))))
    for job_id, some in given.items():
        if some == [POISON]:
            assert sink.failure(job_id).code == "encode_failed"
            continue
        outcome = sink.outcome(job_id)
        bad = (0,) if some[0] == POISON else ()
        assert_vectors(outcome.vectors, some, but=bad)
        assert [error.index for error in outcome.errors] == list(bad)


def test_each_slot_is_watched_and_named(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    names = [thread.name for thread in engine.threads]
    assert {"embedq-encode", "embedq-encode-2", "embedq-interactive"} <= set(names)
    with gate(encoder) as device:
        engine.submit(job_of(texts(100), "a"))
        device.inside(2)
        busy = {thread.name for thread in engine.threads if thread.since is not None}
        assert {"embedq-encode", "embedq-encode-2"} <= busy
    sink.outcome("a")


@crashes
def test_a_device_that_one_slot_loses_takes_the_engine_down(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with gate(encoder) as device:
        engine.submit(job_of(texts(100), "a"))
        device.inside(2)
        encoder.lost = True
    assert isinstance(sink.wait_for_crash(), DeviceLost)
    assert {job.id for job in engine.close(DEADLINE)} == {"a"}


def test_a_running_batch_in_each_slot_is_finished_when_the_engine_closes(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with gate(encoder) as device:
        engine.submit(job_of(texts(8), "a"), job_of(texts(8), "b"))
        device.inside(2)
        closing = threading.Thread(target=engine.close, args=(DEADLINE,))
        closing.start()
    closing.join(DEADLINE)
    assert engine.stopped
    assert set(sink.outcomes) == {"a", "b"}
