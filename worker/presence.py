"""What the worker says of itself while its device makes progress, and the watch over it."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import cast

import orjson
import redis

from worker.contract import keys
from worker.contract.figures import Figures
from worker.contract.models import ModelInfo
from worker.contract.pulse import Pulse
from worker.contract.store import JobStore
from worker.engine import Engine

logger = logging.getLogger(__name__)

#: Seconds between two looks at the engine.
_INTERVAL = 2.0
#: Seconds after which a silent worker's record is removed.
_FORGOTTEN_AFTER = 600.0
#: Exit status of a worker whose device hangs; its supervisor starts another.
EX_HUNG = 75
#: KEYS workers. ARGV node, what it says. A full server refuses a script only before its first
#: write, and a worker that it lets say nothing would be taken for dead.
_TELL = """
redis.call('HDEL', KEYS[1], '')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""


class Presence:
    """A thread that tells Redis when the engine last made progress, every few seconds.

    Progress is a batch that came back, or an idle device thread that looked for work: a worker
    whose device hangs falls silent here although its process answers. A forward pass that takes
    longer than `forward_seconds` ends the process; its jobs come back by lease.

    Its record is one field of the hash `keys.workers(queue)`, JSON of a few kilobytes: `at`
    (seconds since the epoch of the last progress), `pid`, `hostname`, `models` (each a
    `ModelInfo`), `batch_tokens` by model, `tokens_per_second`, `waiting_tokens`, the counts
    `batches`, `texts`, `tokens`, `splits`, `capacity` and `busy_seconds` since the start, and
    `figures`, what the callable given returns on this thread: see `contract.figures`.
    """

    def __init__(
        self,
        engine: Engine,
        store: JobStore,
        queue: str,
        models: Mapping[str, ModelInfo],
        *,
        node: str,
        forward_seconds: float,
        figures: Callable[[], Figures] = dict,
    ) -> None:
        self._engine = engine
        self._store = store
        self._client = store.client
        self._tell = self._client.register_script(_TELL)
        self._key = keys.workers(queue)
        self._models = [asdict(info) | {"prompts": dict(info.prompts)} for info in models.values()]
        self._node = node or f"embedq@{socket.gethostname()}"
        self._pulse = Pulse(self._client, queue, self._node)
        self._forward_seconds = forward_seconds
        self._figures = figures
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="embedq-presence", daemon=True)

    def start(self) -> None:
        """Write once, so that the worker is seen as soon as it is ready, then go on."""
        self._write()
        self._forget_the_dead()
        self._thread.start()

    def stop(self) -> None:
        """Say that the worker is gone."""
        self._stopping.set()
        self._thread.join(_INTERVAL)
        try:
            self._client.hdel(self._key, self._node)
        except redis.RedisError as error:
            # It will be seen as silent instead.
            logger.warning("The worker's record was not removed: %s", type(error).__name__)

    def _run(self) -> None:
        try:
            while not self._stopping.wait(_INTERVAL):
                self._check_device()
                self._write()
        except BaseException as error:
            logger.critical("The watch over the device died, the worker stops", exc_info=error)
            logging.shutdown()
            os._exit(EX_HUNG)

    def _check_device(self) -> None:
        since = self._engine.busy_since
        if since is None or time.monotonic() - since < self._forward_seconds:
            return
        logger.critical(
            "A forward pass has taken more than %d s: the device hangs, the worker stops",
            self._forward_seconds,
        )
        logging.shutdown()
        os._exit(EX_HUNG)

    def _write(self) -> None:
        engine, figures = self._engine, self._figures()
        silent = time.monotonic() - engine.beat
        presence = {
            "at": time.time() - silent,
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "models": self._models,
            "batch_tokens": engine.budgets,
            "tokens_per_second": engine.tokens_per_second(),
            "waiting_tokens": engine.waiting_tokens,
            "batches": engine.batches,
            "texts": engine.texts,
            "tokens": engine.tokens,
            "splits": engine.splits,
            "capacity": engine.capacity,
            "busy_seconds": engine.busy_seconds,
            "figures": figures,
        }
        try:
            self._tell(keys=[self._key], args=[self._node, orjson.dumps(presence)])
            self._pulse.write(
                engine,
                now=time.monotonic(),
                queued_tokens=self._store.queued_tokens(),
                job_counts=figures.get("job_seconds", {}).get("counts", ()),
            )
            if not engine.waiting_tokens:
                self._store.reconcile()
        except redis.RedisError as error:
            logger.warning("The worker's presence was not written: %s", type(error).__name__)

    def _forget_the_dead(self) -> None:
        """Remove what workers said that have been silent for long: nobody else will."""
        try:
            said = cast("dict[bytes, bytes]", self._client.hgetall(self._key))
            before = time.time() - _FORGOTTEN_AFTER
            dead = [node for node, value in said.items() if orjson.loads(value)["at"] < before]
            if dead:
                self._client.hdel(self._key, *dead)
        except redis.RedisError as error:
            logger.warning("Records of dead workers were not removed: %s", type(error).__name__)
