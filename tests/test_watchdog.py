"""A thread that takes too long is found and named; one that waits for work or Redis is not."""

from __future__ import annotations

import time

from worker.watchdog import Busy, Watchdog


def since(thread: Busy, seconds: float) -> None:
    thread.since = time.monotonic() - seconds


def test_a_thread_that_takes_too_long_is_named() -> None:
    idle, working, hanging = Busy("idle"), Busy("working"), Busy("hanging")
    watchdog = Watchdog([idle, working, hanging], 60)
    since(working, 50)
    assert watchdog.hanging() is None
    since(hanging, 70)
    assert watchdog.hanging() == "hanging"
    hanging.leave()
    assert watchdog.hanging() is None


def test_a_thread_is_busy_inside_its_block() -> None:
    thread = Busy("thread")
    with thread:
        assert thread.since is not None
    assert thread.since is None


def test_what_waits_for_redis_does_not_hang_while_redis_is_away() -> None:
    writer, tokenizer = Busy("writer", uses_redis=True), Busy("tokenizer")
    watchdog = Watchdog([writer, tokenizer], 60)
    since(writer, 70)
    watchdog.excuse()
    assert watchdog.hanging() is None
    since(tokenizer, 70)
    assert watchdog.hanging() == "tokenizer"
