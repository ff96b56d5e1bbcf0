"""The heartbeat of a worker while its device makes progress, and the watch over its threads."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial

import orjson
import redis

from worker.contract import keys
from worker.contract.models import ModelInfo
from worker.engine import Engine
from worker.metrics.registry import MetricValues
from worker.store import server
from worker.store.jobs import JobStore
from worker.store.queue_history import HistoryWriter
from worker.store.scripts import HEARTBEAT
from worker.store.worker_registry import WorkerRegistry
from worker.watchdog import EX_HUNG, Watchdog

logger = logging.getLogger(__name__)

#: Seconds between two heartbeats.
_INTERVAL = 2.0
#: Seconds after which a silent worker's record is removed.
_FORGOTTEN_AFTER = 600.0


class Heartbeat:
    """A thread that writes the time of the engine's last progress to Redis every few seconds.

    Progress is a completed batch, or an idle slot that looked for work. If the device hangs, this
    time stands still although the process still answers. A thread that hangs ends the process, see
    `watchdog`.

    A heartbeat is one field of the hash `keys.workers(queue)`, JSON of a few kilobytes: `at`
    (seconds since the epoch of the last progress, by Redis' clock), `pid`, `hostname`, `models`
    (each a `ModelInfo`), `batch_tokens` by model, `tokens_per_second`, `waiting_tokens`, the counts
    `batches`, `texts`, `tokens`, `splits`, `capacity` and `busy_seconds` since the start, and
    `figures`, the metrics, as the callable `metrics` returns them on this thread.
    """

    def __init__(
        self,
        engine: Engine,
        store: JobStore,
        queue: str,
        models: Mapping[str, ModelInfo],
        *,
        node: str,
        watchdog: Watchdog,
        metrics: Callable[[], MetricValues] = dict,
        cancelled: Callable[[str], object] = lambda _: None,
        blocked: Callable[[], bool] = lambda: False,
    ) -> None:
        """`cancelled` is called on this thread with the ids of cancelled jobs.

        While `blocked` returns true no heartbeat is written, since no job can be completed.
        """
        self._engine = engine
        self._store = store
        self._client = store.client
        self._heartbeat = self._client.register_script(HEARTBEAT)
        self._key = keys.workers(queue)
        self._models = [asdict(info) | {"prompts": dict(info.prompts)} for info in models.values()]
        self._node = node or f"embedq@{socket.gethostname()}"
        self._pulse = HistoryWriter(self._client, queue, self._node)
        self._watchdog = watchdog
        self._metrics = metrics
        self._clock = store.clock
        self._cancelled = cancelled
        self._cancelled_until = 0.0
        self._blocked = blocked
        self._queue = queue
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="embedq-presence", daemon=True)

    def start(self) -> None:
        """Write the first heartbeat, so that a ready worker counts at once; start the thread."""
        self._forget_the_dead()
        self._write()
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and remove the heartbeat."""
        self._stopping.set()
        self._thread.join(_INTERVAL)
        try:
            self._client.hdel(self._key, self._node)
        except redis.RedisError as error:
            # The record goes stale instead.
            logger.warning("The worker's record was not removed: %s", server.reason(error))

    def _run(self) -> None:
        try:
            while not self._stopping.wait(_INTERVAL):
                self._watchdog.check()
                self._write()
        except BaseException as error:
            logger.critical("The watch over the threads died, the worker stops", exc_info=error)
            logging.shutdown()
            os._exit(EX_HUNG)

    def _write(self) -> None:
        """Write the heartbeat, and do the other periodic steps.

        If Redis refuses a step, for a key of another type for example, the others still run.
        """
        metrics = self._metrics()
        steps: dict[str, Callable[[], object]] = {
            "heartbeat": partial(self._beat, metrics),
            "pulse": partial(self._write_pulse, metrics),
            "clock": self._clock.measure,
            "cancelled jobs": self._drop_cancelled,
            "sweep": self._store.sweep,
        }
        for name, step in steps.items():
            try:
                step()
            except redis.RedisError as error:
                self._watchdog.excuse()
                logger.warning("Redis did not take the %s: %s", name, server.reason(error))
                if not isinstance(error, redis.ResponseError):
                    return

    def _beat(self, metrics: MetricValues) -> None:
        if self._blocked():
            self._watchdog.excuse()
            return
        engine = self._engine
        silent = time.monotonic() - engine.beat
        # The script adds `at`.
        heartbeat = {
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "models": self._models,
            "batch_tokens": engine.budgets,
            "tokens_per_second": engine.tokens_per_second(),
            "waiting_tokens": engine.waiting_tokens,
            "batches": engine.totals.batches,
            "texts": engine.totals.texts,
            "tokens": engine.totals.tokens,
            "splits": engine.splits,
            "capacity": engine.totals.capacity,
            "busy_seconds": engine.totals.busy_seconds,
            "figures": metrics,
        }
        members = orjson.dumps(heartbeat)[1:]
        self._heartbeat(keys=[self._key], args=[self._node, silent, members])

    def _write_pulse(self, metrics: MetricValues) -> None:
        self._pulse.write(
            self._engine.totals,
            now=time.monotonic(),
            queued_tokens=self._store.queued_tokens(),
            job_counts=metrics.get("job_seconds", {}).get("counts", ()),
        )

    def _drop_cancelled(self) -> None:
        """Read the ids of jobs that were cancelled while the connection was away."""
        for job_id, when in self._store.cancelled_since(self._cancelled_until):
            self._cancelled_until = max(self._cancelled_until, when)
            self._cancelled(job_id)

    def _forget_the_dead(self) -> None:
        """Remove heartbeats of workers that have been silent for long, and invalid ones."""
        try:
            found, now = WorkerRegistry(self._client, self._queue).heartbeats()
            dead = [node for node, raw in found.items() if _time_of(raw) < now - _FORGOTTEN_AFTER]
            if dead:
                self._client.hdel(self._key, *dead)
        except redis.RedisError as error:
            logger.warning("Heartbeats of dead workers stay: %s", server.reason(error))


def _time_of(raw: bytes) -> float:
    """The time of a heartbeat, 0 if it is invalid: a live worker writes its own again."""
    try:
        return float(orjson.loads(raw)["at"])
    except (ValueError, TypeError, KeyError):
        return 0.0
