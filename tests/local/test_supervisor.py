"""The supervisor, on real but simple processes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.processes import Processes, alive, eventually
from worker.local.supervisor import Program, StartFailed, Stopped, Supervisor, describe

WAIT = "import threading; threading.Event().wait()"
IGNORE = "signal.SIG_IGN"
SCRIPT = """
import os, pathlib, signal, sys
folder = pathlib.Path({folder!r})
def end(*_):
    (folder / "ended").open("a").write("{name}\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, {on_sigterm})
(folder / "{name}").open("a").write(f"{{os.getpid()}}\\n")
"""


@dataclass
class Harness:
    """A supervisor, its output, and a folder in which programs leave a line per start."""

    supervisor: Supervisor
    folder: Path
    said: list[str] = field(default_factory=list)

    def program(
        self, name: str, then: str = WAIT, *, on_sigterm: str = "end", stop_s: float = 10
    ) -> Program:
        """Writes its process id to a file called `name` and its name to `ended` at SIGTERM."""
        script = SCRIPT.format(folder=str(self.folder), name=name, on_sigterm=on_sigterm)
        return Program(name, [sys.executable, "-c", script + then], stop_s)

    def pids(self, name: str) -> list[int]:
        file = self.folder / name
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []

    def started(self, name: str, times: int = 1) -> None:
        eventually(lambda: len(self.pids(name)) >= times, message=lambda: str(self.said))

    def run(self) -> threading.Thread:
        thread = threading.Thread(target=self.supervisor.run)
        thread.start()
        return thread


@pytest.fixture
def harness(processes: Processes) -> Harness:
    said: list[str] = []
    return Harness(Supervisor(processes.children, said.append), processes.folder, said)


def test_programs_are_stopped_in_the_reverse_order_of_their_starts(harness: Harness) -> None:
    for name in ("valkey", "worker", "api"):
        harness.supervisor.start(harness.program(name))
        harness.started(name)

    harness.supervisor.stop()

    assert (harness.folder / "ended").read_text().split() == ["api", "worker", "valkey"]


def test_a_program_that_is_killed_is_started_again_and_keeps_its_place(harness: Harness) -> None:
    for name in ("valkey", "api"):
        harness.supervisor.start(harness.program(name))
        harness.started(name)
    thread = harness.run()
    kill(harness.pids("valkey")[0])
    harness.started("valkey", times=2)
    harness.supervisor.ask_stop("enough")
    thread.join(10)
    harness.supervisor.stop()

    assert harness.said[0] == "valkey was killed by SIGKILL: starting it again in 1 s"
    assert (harness.folder / "ended").read_text().split() == ["api", "valkey"]


def test_pauses_grow_for_a_program_that_keeps_ending(harness: Harness) -> None:
    harness.supervisor.start(harness.program("worker", then="sys.exit(3)"))
    thread = harness.run()
    eventually(lambda: len(harness.said) >= 2)
    harness.supervisor.ask_stop("enough")
    thread.join(10)

    assert harness.said[:2] == [
        "worker ended with exit code 3: starting it again in 1 s",
        "worker ended with exit code 3: starting it again in 2 s",
    ]


def test_a_program_that_ends_before_it_is_ready_is_not_started_again(harness: Harness) -> None:
    harness.supervisor.start(harness.program("valkey"))
    harness.started("valkey")
    harness.supervisor.start(harness.program("worker", then="sys.exit(1)"))
    with pytest.raises(StartFailed, match=r"^worker ended with exit code 1 before it was ready$"):
        harness.supervisor.wait_ready(lambda: False)
    harness.supervisor.stop()

    assert len(harness.pids("worker")) == 1
    assert not alive(harness.pids("valkey")[0])


def test_a_stop_is_heard_while_programs_start(harness: Harness) -> None:
    harness.supervisor.start(harness.program("worker"))
    harness.supervisor.ask_stop("enough")
    with pytest.raises(Stopped, match="enough"):
        harness.supervisor.wait_ready(lambda: False)
    harness.supervisor.stop()


def test_a_program_that_is_too_slow_to_stop_is_killed(harness: Harness) -> None:
    harness.supervisor.start(harness.program("worker", on_sigterm=IGNORE, stop_s=0.3))
    harness.started("worker")
    harness.supervisor.stop()

    assert "worker did not end within 0.3 s: killing it" in harness.said
    assert not alive(harness.pids("worker")[0])


def test_a_second_request_to_stop_kills_what_is_left(harness: Harness) -> None:
    for name in ("worker", "api"):
        harness.supervisor.start(harness.program(name, on_sigterm=IGNORE, stop_s=60))
        harness.started(name)
    harness.supervisor.ask_stop("again")
    harness.supervisor.stop()

    assert not any(alive(harness.pids(name)[0]) for name in ("worker", "api"))


def test_the_end_of_the_guardian_ends_it_all(harness: Harness) -> None:
    thread = harness.run()
    kill(harness.supervisor.children.guardian.pid)
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("code", "words"), [(1, "ended with exit code 1"), (-9, "was killed by SIGKILL")]
)
def test_exit_codes_are_told_in_words(code: int, words: str) -> None:
    assert describe(code) == words


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
