"""The hand-over between two stages: order, lanes, capacity, wake-ups, closing, isolation."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.fakes import DEADLINE, job_of
from tests.processes import eventually
from worker.contract.lanes import Lane
from worker.engine import queue
from worker.engine.isolation import Isolation
from worker.engine.queue import Capacity, StageQueue, everything


class Stand:
    """A queue, and a thread that takes from it."""

    def __init__(self, pool: ThreadPoolExecutor, **how: object) -> None:
        self.lock = threading.Lock()
        self.isolation = Isolation(threading.Condition(self.lock))
        self.queue: StageQueue[str] = StageQueue("stage", self.lock, self.isolation, **how)  # type: ignore[arg-type]
        self._pool = pool

    def put(self, *items: str, lane: Lane = Lane.NORMAL, tokens: int = 0, size: int = 0) -> None:
        with self.lock:
            self.queue.put(items, lane, tokens=tokens, size=size)

    def take(self) -> Future[list[str]]:
        """Take everything of a lane, on another thread."""

        def run() -> list[str]:
            with self.lock:
                return self.queue.take(everything)

        return self._pool.submit(run)

    def taken(self) -> list[str]:
        return self.take().result(DEADLINE)

    def waits(self, taken: Future[list[str]]) -> bool:
        return not threading.Event().wait(0.05) and not taken.done()


@pytest.fixture(autouse=True)
def _no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is not woken stays idle: a lost wake-up fails the test."""
    monkeypatch.setattr(queue, "_IDLE_SECONDS", 10 * DEADLINE)


@pytest.fixture
def make() -> Iterator[Callable[..., Stand]]:
    """Yield a factory of stands; their threads end with the test."""
    stands: list[Stand] = []
    with ThreadPoolExecutor() as pool:

        def make(**how: object) -> Stand:
            stands.append(Stand(pool, **how))
            return stands[-1]

        yield make
        for stand in stands:
            with stand.lock:
                stand.queue._rests = False
                stand.queue.close()


@pytest.fixture
def stand(make: Callable[..., Stand]) -> Stand:
    return make()


def test_items_of_a_lane_come_in_their_order(stand: Stand) -> None:
    stand.put("a", "b")
    stand.put("c")
    assert stand.taken() == ["a", "b", "c"]


def test_an_item_wakes_the_thread_that_waits(stand: Stand) -> None:
    taken = stand.take()
    assert stand.waits(taken)
    stand.put("a")
    assert taken.result(DEADLINE) == ["a"]


def test_what_is_not_selected_stays(stand: Stand) -> None:
    stand.put("a", "b")
    with stand.lock:
        assert stand.queue.take(lambda items: [items.popleft()]) == ["a"]
        assert stand.queue.waiting
    assert stand.taken() == ["b"]


def test_a_lane_of_which_nothing_is_selected_does_not_hold_up_the_next(stand: Stand) -> None:
    stand.put("gone", lane=Lane.INTERACTIVE)
    stand.put("a")

    def select(items: deque[str]) -> list[str]:
        return [item for item in everything(items) if item != "gone"]

    with stand.lock:
        assert stand.queue.take(select) == ["a"]


def test_the_most_urgent_lane_comes_first(stand: Stand) -> None:
    for lane in reversed(Lane):
        stand.put(lane.name, lane=lane)
    assert [stand.taken() for _ in Lane] == [[lane.name] for lane in Lane]


def test_no_lane_waits_for_ever(stand: Stand) -> None:
    stand.put("bulk", lane=Lane.BULK)
    stand.put("normal")
    turns = []
    for number in range(queue._MOST_PASSES + 2):
        stand.put(f"{number}", lane=Lane.INTERACTIVE)
        turns.append(stand.taken())
    assert turns[: queue._MOST_PASSES] == [[f"{n}"] for n in range(queue._MOST_PASSES)]
    assert turns[queue._MOST_PASSES :] == [["normal"], ["bulk"]]
    assert len(stand.taken()) == 2


def test_each_lane_has_a_limit_of_its_own() -> None:
    capacity = Capacity(tokens=100, size=4000)
    assert capacity.left(Lane.BULK) == 100
    capacity.tokens[Lane.BULK] += 60
    assert capacity.left(Lane.BULK) == 40
    capacity.size[Lane.BULK] += 3900
    assert capacity.left(Lane.BULK) == 25
    capacity.size[Lane.BULK] += 200
    assert capacity.left(Lane.BULK) < 0
    assert capacity.left(Lane.NORMAL) == capacity.left(Lane.INTERACTIVE) == 100


@pytest.mark.parametrize("used", [{"tokens": 5}, {"size": 20}])
def test_a_full_queue_takes_more_and_is_relieved_once_it_is_taken(
    used: dict[str, int], make: Callable[..., Stand]
) -> None:
    relieved: list[bool] = []
    capacity = Capacity(tokens=10, size=40)
    stand = make(capacity=capacity, relieved=lambda: relieved.append(True))
    stand.put("a", **used)
    assert not stand.queue.full
    stand.put("b", **used)
    assert stand.queue.full
    stand.put("c", **used)
    assert stand.taken() == ["a", "b", "c"]
    assert not stand.queue.full
    assert relieved == [True]
    stand.put("d", **used)
    assert stand.taken() == ["d"]
    assert relieved == [True], "it was not full"


def test_a_closed_queue_drops_its_items_and_takes_no_more(stand: Stand) -> None:
    stand.put("a")
    with stand.lock:
        stand.queue.close()
    stand.put("b")
    assert stand.taken() == []


def test_a_queue_can_be_emptied_before_it_ends(stand: Stand) -> None:
    stand.put("a")
    with stand.lock:
        stand.queue.close(drop=False)
    assert stand.taken() == ["a"]
    assert stand.taken() == []


def test_closing_wakes_the_thread_that_waits(stand: Stand) -> None:
    taken = stand.take()
    assert stand.waits(taken)
    with stand.lock:
        stand.queue.close()
    assert taken.result(DEADLINE) == []


def test_the_thread_is_busy_from_one_take_to_the_next(stand: Stand) -> None:
    assert stand.queue.busy.since is None
    stand.put("a")
    stand.taken()
    assert stand.queue.busy.since is not None
    taken = stand.take()
    eventually(lambda: stand.queue.busy.since is None)
    stand.put("b")
    taken.result(DEADLINE)


def test_another_thread_runs_an_idle_stage_and_the_own_one_pauses(stand: Stand) -> None:
    taken = stand.take()
    with stand.lock:
        stand.queue.put(["a"], wake=False)
        assert stand.queue.claim(everything) == ["a"]
        stand.queue.put(["b"])
        assert stand.queue.claim(everything) == [], "one thread at a time"
    assert stand.waits(taken)
    with stand.lock:
        stand.queue.release()
    assert taken.result(DEADLINE) == ["b"]


def test_a_stage_that_runs_cannot_be_claimed(stand: Stand) -> None:
    stand.put("a")
    stand.taken()
    stand.put("b")
    with stand.lock:
        assert stand.queue.claim(everything) == []


def test_nothing_is_claimed_of_an_empty_queue(stand: Stand) -> None:
    with stand.lock:
        assert stand.queue.claim(everything) == []
    stand.put("a")
    assert stand.taken() == ["a"], "its own thread pauses for nothing"


def test_a_stage_rests_while_a_job_is_isolated(stand: Stand) -> None:
    with stand.lock:
        stand.isolation.enter(job_of(["a"], isolated=True))
    stand.put("a")
    taken = stand.take()
    assert stand.waits(taken)
    with stand.lock:
        stand.isolation.begin().done = 1
        stand.isolation.end()
        stand.queue.wake()
    assert taken.result(DEADLINE) == ["a"]


def test_a_stage_that_does_not_rest_goes_on(make: Callable[..., Stand]) -> None:
    stand = make(rests=False)
    with stand.lock:
        stand.isolation.enter(job_of(["a"], isolated=True))
    stand.put("a")
    assert stand.taken() == ["a"]
