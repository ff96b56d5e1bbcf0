"""Faults of the processes, in an order by a seed."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

from bench.soak.stage import LEASE_SECONDS, Stage


@dataclass(frozen=True)
class Plan:
    """The number of faults of each kind."""

    worker_kills: int
    connection_kills: int
    valkey_kills: int
    worker_stops: int

    def events(self, rng: random.Random) -> list[str]:
        names = (
            ["worker"] * self.worker_kills
            + ["connections"] * self.connection_kills
            + ["valkey"] * self.valkey_kills
            + ["stop"] * self.worker_stops
        )
        rng.shuffle(names)
        return names


class Chaos:
    """Runs a plan's faults, one after another, in the calling thread."""

    def __init__(self, stage: Stage, *, pause: float, seed: int) -> None:
        self._stage = stage
        self._rng = random.Random(seed)
        self._pause = pause
        self._timer = threading.Event()
        self._turn = 0

    def run(self, plan: Plan, tell: Callable[[int, int, str], None]) -> None:
        events = plan.events(self._rng)
        for number, event in enumerate(events, 1):
            self._timer.wait(self._rng.uniform(0.3, 1.7) * self._pause)
            tell(number, len(events), event)
            getattr(self, f"_{event}")()

    def _worker(self) -> None:
        # In turn, so that each worker has had time to start.
        self._turn = (self._turn + 1) % len(self._stage.workers)
        self._stage.kill_worker(self._turn)

    def _connections(self) -> None:
        self._stage.kill_connections()

    def _valkey(self) -> None:
        self._stage.restart_valkey()

    def _stop(self) -> None:
        worker = self._stage.stop_worker(self._rng.randrange(len(self._stage.workers)))
        self._timer.wait(LEASE_SECONDS * 1.6)
        worker.signal(signal.SIGCONT)
