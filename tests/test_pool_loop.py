"""Calls onto the thread of the event loop."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from kombu.asynchronous import Hub, set_event_loop

from tests.processes import eventually
from worker.pool.loop import LoopCalls


class Loop:
    """kombu's event loop on a thread of its own."""

    def __init__(self, calls: LoopCalls) -> None:
        self.hub = Hub()
        calls.attach(self.hub)
        self.thread = threading.Thread(target=self.hub.run_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.hub.stop()
        self.thread.join(5)
        self.hub.close()
        set_event_loop(None)


@pytest.fixture
def calls() -> LoopCalls:
    return LoopCalls()


@pytest.fixture
def loop(calls: LoopCalls) -> Iterator[Loop]:
    loop = Loop(calls)
    yield loop
    loop.stop()


def test_calls_run_on_the_loops_thread_in_their_order(calls: LoopCalls, loop: Loop) -> None:
    ran: list[tuple[int, threading.Thread]] = []
    for number in range(100):
        calls.call(lambda number=number: ran.append((number, threading.current_thread())))
    eventually(lambda: len(ran) == 100)
    assert ran == [(number, loop.thread) for number in range(100)]


def test_calls_that_two_threads_make_at_once_are_not_forgotten(
    calls: LoopCalls, loop: Loop
) -> None:
    both_there = threading.Barrier(2)

    class Waiting(deque[Any]):
        def append(self, call: Any) -> None:
            super().append(call)
            both_there.wait(5)

    calls._calls = Waiting()
    ran: list[int] = []
    threads = [threading.Thread(target=calls.call, args=(ran.append, n)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    eventually(lambda: sorted(ran) == [1, 2], 5)
    for thread in threads:
        thread.join()


def test_what_a_call_tells_the_loop_to_do_soon_is_done_at_once(
    calls: LoopCalls, loop: Loop
) -> None:
    slowest = 0.0
    for _ in range(5):
        done = threading.Event()
        begun = time.monotonic()
        calls.call(loop.hub.call_soon, done.set)
        assert done.wait(5)
        slowest = max(slowest, time.monotonic() - begun)
    # The loop's poll ends by itself after a second.
    assert slowest < 0.5


def test_a_call_made_while_there_is_no_loop_runs_on_the_next(calls: LoopCalls) -> None:
    ran: list[str] = []
    calls.call(ran.append, "before the first")
    loop = Loop(calls)
    eventually(lambda: ran == ["before the first"])
    loop.stop()
    calls.call(ran.append, "between two")
    loop = Loop(calls)
    eventually(lambda: ran[1:] == ["between two"])
    loop.stop()
    calls.call(ran.append, "after the last")
    calls.run()
    assert ran[2:] == ["after the last"]


def test_a_call_survives_that_the_loop_is_reset(calls: LoopCalls) -> None:
    hub = Hub()
    calls.attach(hub)
    ran: list[int] = []
    calls.call(ran.append, 1)
    # As Celery does when a connection is lost.
    hub.reset()
    calls.call(ran.append, 2)
    calls.attach(hub)
    hub.run_once()
    hub.run_once()
    assert ran == [1, 2]
    hub.close()


def test_a_call_that_raises_does_not_stop_the_others(
    calls: LoopCalls, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []
    calls.call(ran.append, 1)
    calls.call(ran.index, 7)
    calls.call(ran.append, 2)
    with caplog.at_level(logging.CRITICAL, "worker.pool.loop"):
        calls.run()
    assert ran == [1, 2]
