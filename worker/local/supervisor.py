"""Restarts of programs, the order of their stops, and the end of the deployment."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import NamedTuple

from worker.contract.backoff import Backoff
from worker.contract.errors import EmbedqError
from worker.local.children import Children, signal_group

#: Seconds before a program that ended is started again: doubled each time, up to the last.
BACKOFF = Backoff(1.0, 30.0)
#: Seconds of running after which a program's backoff starts over.
SOUND_S = 60.0
#: Seconds between two checks for readiness.
READY_INTERVAL_S = 0.2


class StartFailed(EmbedqError):
    """A program ended before it was ready: a restart would not help."""

    code = "start_failed"


class Stopped(Exception):
    """A stop was requested while the programs were starting."""


@dataclass(frozen=True)
class Program:
    """A program to run, and the seconds that it may take to end after SIGTERM."""

    name: str
    command: Sequence[str]
    stop_s: float
    env: Mapping[str, str] | None = None
    keep_fds: Sequence[int] = ()
    #: The log with the reason for its end, if not our own standard error.
    log: Path | None = None


class _Ended(NamedTuple):
    name: str
    code: int


class _StopAsked(NamedTuple):
    reason: str


@dataclass
class _Run:
    program: Program
    process: subprocess.Popen[bytes]
    since: float
    #: Seconds to wait before each start that follows.
    pauses: Iterator[float]


@dataclass
class Supervisor:
    """Runs programs until asked to stop.

    The caller's thread owns all state. One thread for each program waits for its end. These
    threads and the signal handlers only put events into a SimpleQueue; its `put` is safe in a
    signal handler. `say` prints one line for the user.
    """

    children: Children
    say: Callable[[str], None]
    #: Every program in the order of its first start.
    _programs: list[Program] = field(default_factory=list)
    #: Running programs, by name.
    _runs: dict[str, _Run] = field(default_factory=dict)
    #: Programs in backoff, by name, with the time of their next start.
    _paused: dict[str, tuple[float, _Run]] = field(default_factory=dict)
    _events: SimpleQueue[_Ended | _StopAsked] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        threading.Thread(target=self._watch_guardian, name="watch guardian", daemon=True).start()

    def catch_signals(self) -> None:
        """Let SIGINT, SIGTERM and SIGHUP ask for the end; a second one asks for haste."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def ask_stop(self, reason: str) -> None:
        """Make `run` return, or `wait_ready` raise; from any thread."""
        self._events.put(_StopAsked(reason))

    def start(self, program: Program) -> None:
        """Start a program; programs are stopped in the reverse order of their starts."""
        self._programs.append(program)
        self._runs[program.name] = self._launch(program, iter(BACKOFF))

    def wait_ready(
        self, ready: Callable[[], bool], waiting: Callable[[float], None] = lambda _: None
    ) -> None:
        """Return as soon as `ready()`; in between call `waiting` with the seconds so far.

        Raises `StartFailed` as soon as any program ends, `Stopped` when asked to stop.
        """
        begin = time.monotonic()
        while not ready():
            event = self._next_event(READY_INTERVAL_S)
            if isinstance(event, _StopAsked):
                raise Stopped(event.reason)
            if event is not None:
                log = self._reap(event.name).program.log
                hint = f"; see {log}" if log else ""
                raise StartFailed(f"{event.name} {describe(event.code)} before it was ready{hint}")
            waiting(time.monotonic() - begin)

    def run(self) -> str:
        """Restart programs that end, until asked to stop; return the reason for the stop."""
        while True:
            event = self._next_event(self._pause_left())
            if isinstance(event, _StopAsked):
                return event.reason
            if event is not None:
                self._on_end(event)
            self._start_due()

    def stop(self) -> None:
        """SIGTERM to one program after the other, last started first; SIGKILL to those too slow.

        Asked to stop again meanwhile, it kills the rest at once.
        """
        self._paused.clear()
        if not self._runs:
            return
        limit = sum(program.stop_s for program in self._programs)
        self.say(f"Stopping, within {limit:.0f} s; Ctrl-C again stops at once")
        hurry = False
        for program in reversed(self._programs):
            if program.name in self._runs:
                hurry = self._end(program, hurry)
        self.say("Stopped")

    def _end(self, program: Program, hurry: bool) -> bool:
        """End one program and wait for it; return whether to kill the following ones."""
        process = self._runs[program.name].process
        signal_group(process, signal.SIGKILL if hurry else signal.SIGTERM)
        deadline = None if hurry else time.monotonic() + program.stop_s
        while program.name in self._runs:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            event = self._next_event(left)
            if isinstance(event, _Ended):
                self._reap(event.name)
                continue
            if event is None:
                self.say(f"{program.name} did not end within {program.stop_s:g} s: killing it")
            else:
                hurry = True
            signal_group(process, signal.SIGKILL)
            deadline = None
        return hurry

    def _launch(self, program: Program, pauses: Iterator[float]) -> _Run:
        process = self.children.start(program.command, env=program.env, keep_fds=program.keep_fds)
        threading.Thread(
            target=self._watch,
            args=(program.name, process),
            name=f"watch {program.name}",
            daemon=True,
        ).start()
        return _Run(program, process, time.monotonic(), pauses)

    def _watch(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Report a program's end. A thread of its own, which ends with the program."""
        self._events.put(_Ended(name, process.wait()))

    def _watch_guardian(self) -> None:
        """Stop if the guardian ends, since orphans would then keep running."""
        self.children.guardian.wait()
        self.ask_stop("The guardian process ended")

    def _on_end(self, event: _Ended) -> None:
        run = self._reap(event.name)
        if time.monotonic() - run.since >= SOUND_S:
            run.pauses = iter(BACKOFF)
        pause = next(run.pauses)
        self._paused[event.name] = (time.monotonic() + pause, run)
        self.say(f"{event.name} {describe(event.code)}: starting it again in {pause:.0f} s")

    def _reap(self, name: str) -> _Run:
        run = self._runs.pop(name)
        self.children.forget(run.process)
        return run

    def _pause_left(self) -> float | None:
        """Seconds until the next start is due; None if no program waits for one."""
        if not self._paused:
            return None
        return max(min(due for due, _ in self._paused.values()) - time.monotonic(), 0.0)

    def _start_due(self) -> None:
        now = time.monotonic()
        for name in [name for name, (due, _) in self._paused.items() if due <= now]:
            _, run = self._paused.pop(name)
            self._runs[name] = self._launch(run.program, run.pauses)

    def _next_event(self, timeout_s: float | None) -> _Ended | _StopAsked | None:
        try:
            return self._events.get(timeout=timeout_s)
        except Empty:
            return None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.ask_stop(f"Received {signal.Signals(number).name}")


def describe(code: int) -> str:
    """An exit code as `subprocess` gives it, in words."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
