"""Threads for calls that may block."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from tests.processes import ROOT, eventually
from worker.pool.threads import DaemonThreads


def test_things_run_in_their_order() -> None:
    seen: list[int] = []
    threads = DaemonThreads(1, "test", seen.append)
    for number in range(100):
        threads.submit(number)
    assert threads.wait(5)
    assert seen == list(range(100))
    threads.close()


def test_as_many_run_at_once_as_there_are_threads() -> None:
    together = threading.Barrier(3)
    threads = DaemonThreads(3, "test", lambda _: together.wait(5))
    for number in range(3):
        threads.submit(number)
    assert threads.wait(5)
    threads.close()


def test_what_nobody_has_begun_can_be_withdrawn_and_nothing_else() -> None:
    go_on = threading.Event()
    seen: list[int] = []

    def run(number: int) -> None:
        seen.append(number)
        go_on.wait(5)

    threads = DaemonThreads(1, "test", run)
    threads.submit(1)
    eventually(lambda: seen == [1])
    threads.submit(2)
    assert threads.backlog == 2
    assert threads.withdraw(2)
    assert not threads.withdraw(2)
    assert not threads.withdraw(1)
    assert not threads.wait(0.01)
    go_on.set()
    assert threads.wait(5)
    assert seen == [1]
    threads.close()


def test_a_closed_crew_finishes_what_waits_and_ends() -> None:
    seen: list[int] = []
    before = set(threading.enumerate())
    threads = DaemonThreads(2, "test", seen.append)
    mine = set(threading.enumerate()) - before
    for number in range(10):
        threads.submit(number)
    threads.close()
    for thread in mine:
        thread.join(5)
        assert not thread.is_alive()
    assert sorted(seen) == list(range(10))


PROGRAM = """
import time
from worker.pool.threads import DaemonThreads
threads = DaemonThreads(1, "test", {function})
threads.submit(1)
{then}
"""


def run(function: str, then: str = "") -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(function=function, then=then)
    return subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        timeout=30,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_a_thing_that_hangs_does_not_keep_the_process_alive() -> None:
    begun = time.monotonic()
    assert run("lambda _: time.sleep(60)").returncode == 0
    assert time.monotonic() - begun < 20


def test_a_thread_that_dies_takes_the_process_down() -> None:
    ended = run("lambda _: 1 / 0", "threads.wait(30)")
    assert ended.returncode == 70
    assert "ZeroDivisionError" in ended.stderr
