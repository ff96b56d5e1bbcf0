"""Threads that observe a run: the outcomes of jobs, and the server's memory."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any, cast

import redis

from bench.soak.audit import Expected, outcome_of
from bench.soak.load import Accepted
from bench.soak.stage import Stage
from worker.contract import keys

#: Results of one command, and jobs of one pass; both are limited because results are large.
_ASKED, _TAKEN = 200, 20_000


class _Watch(ABC):
    """A thread that observes the run, from `start` to `close`."""

    def __init__(self, name: str) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()

    @abstractmethod
    def _run(self) -> None:
        """Observe until `_stopping` is set."""


class Auditor(_Watch):
    """Reads outcomes before they expire, and removes the jobs that it has read from `accepted`.

    `accepted.lock` guards `counts` and the accepted jobs.
    """

    def __init__(self, stage: Stage, accepted: Accepted, expected: Expected) -> None:
        super().__init__("auditor")
        #: Jobs by how they ended: `right`, `wrong`, `failed: …`.
        self.counts: Counter[str] = Counter()
        self._stage = stage
        self._accepted = accepted
        self._expected = expected

    @property
    def ended(self) -> int:
        """The number of jobs with an outcome that was read."""
        with self._accepted.lock:
            return self.counts.total()

    def _run(self) -> None:
        with self._stage.client() as client:
            while not self._stopping.wait(0.1):
                with self._accepted.lock:
                    jobs = dict(islice(self._accepted.jobs.items(), _TAKEN))
                ids = list(jobs)
                for at in range(0, len(ids), _ASKED):
                    self._look(client, {one: jobs[one] for one in ids[at : at + _ASKED]})

    def _look(self, client: redis.Redis, jobs: Mapping[str, list[str]]) -> None:
        raws = cast("list[bytes | None]", client.mget([keys.result(job_id) for job_id in jobs]))
        for (job_id, texts), raw in zip(jobs.items(), raws, strict=True):
            outcome = None if raw is None else outcome_of(raw, self._expected(texts))
            with self._accepted.lock:
                if outcome is not None:
                    self.counts[outcome] += 1
                    self._accepted.jobs.pop(job_id)
                else:
                    # Move it to the end, so that each job gets its turn.
                    self._accepted.jobs[job_id] = self._accepted.jobs.pop(job_id)


class MemoryGauge(_Watch):
    """Reads the server's memory use four times a second."""

    def __init__(self, stage: Stage) -> None:
        super().__init__("memory")
        #: Bytes, as the server counts them against its `maxmemory`.
        self.highest = 0
        self._stage = stage
        self._looks = self._full = 0

    @property
    def share_full(self) -> float:
        """The share of the time during which the server was full."""
        return self._full / max(self._looks, 1)

    def _run(self) -> None:
        with self._stage.client() as client:
            while not self._stopping.wait(0.25):
                memory = cast("dict[str, Any]", client.info("memory"))
                used = memory["used_memory"] - memory["mem_not_counted_for_evict"]
                self.highest = max(self.highest, used)
                self._looks += 1
                self._full += used >= memory["maxmemory"]
