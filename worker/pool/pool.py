"""The Celery pool: requests of `embed` go to the engine, all others to threads."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

import redis
from celery import signals
from celery.concurrency.base import BasePool
from celery.exceptions import WorkerTerminate
from celery.utils import log as celery_log
from celery.worker import state

from worker import loading, tasks
from worker.cache.store import open_cache
from worker.contract.errors import EmbedqError
from worker.contract.jobs import TASK_NAME
from worker.contract.lanes import Lane
from worker.contract.settings import Settings
from worker.encoder.protocol import Encoder
from worker.engine import Engine
from worker.pool.direct_calls import DirectCalls
from worker.pool.failures import Failures
from worker.pool.heartbeat import Heartbeat
from worker.pool.in_flight import InFlightJob, Limits
from worker.pool.job_intake import JobIntake
from worker.pool.job_metrics import CANCELLED, EXPIRED
from worker.pool.limits import TimeLimits
from worker.pool.loop import LoopCalls
from worker.pool.metrics import stats_of, worker_metrics
from worker.pool.other_tasks import OtherTask, OtherTasks
from worker.pool.outcomes import Outcomes
from worker.pool.parking import Parking
from worker.pool.request import EmbedRequest
from worker.pool.shutdown_renewal import leases_renewed
from worker.pool.spans import JobSpans
from worker.store import server
from worker.store.celery_jobs import store_of
from worker.store.eviction import EvictionCheck
from worker.store.jobs import JobStore
from worker.transport import capacity, leases
from worker.watchdog import Watchdog

logger = logging.getLogger(__name__)

#: Exit status for a missing model, device or setting: a restart does not help.
EX_CONFIG = 78
#: Seconds that a cold shutdown may take.
_COLD_SECONDS = 1.0


class TaskPool(BasePool):
    """One engine for `embedq.embed`, a few threads for everything else.

    `on_apply` and every callback of Celery run on the thread of its event loop, which never waits
    for the engine; calls of other threads reach Celery through `LoopCalls`.
    """

    signal_safe = False
    body_can_be_buffer = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: Requests of `embed` that have not ended; owned by the loop's thread.
        self._open: dict[InFlightJob, None] = {}
        self._stopping = False

    def on_start(self) -> None:
        """Load the models, before the first message is taken.

        Raises:
            SystemExit: a model, device or setting is missing.
        """
        # At debug level Celery would log the arguments of every task, and so texts.
        self._does_debug = False
        settings, encoders = _load_models()
        store = self._store()
        EvictionCheck((store.client, store.broker)).start()
        loading.relieve_collector()
        loading.shorten_turns()
        self._settings = settings
        self._infos = {name: encoder.info for name, encoder in encoders.items()}
        self._build(store, encoders)
        self._start(store)

    def _store(self) -> JobStore:
        store = store_of(self.app)
        if store is None:
            logger.critical("embedq keeps results on Redis; the result backend is another")
            raise SystemExit(EX_CONFIG)
        return store

    def _build(self, store: JobStore, encoders: dict[str, Encoder]) -> None:
        """Create the components, dependencies first."""
        settings = self._settings
        self.clock = EmbedRequest.clock = store.clock
        self._loop = LoopCalls()
        self.failures = Failures(self.app)
        self._others = OtherTasks(
            settings.task_threads, self._loop, self.failures, store, settings.max_attempts
        )
        conf = self.app.conf
        self.parking = Parking(
            self.app,
            self.clock,
            self.app.tasks,
            traced=bool(conf.result_extended or conf.task_track_started),
        )
        self._spans = JobSpans.of_environment()
        self._outcomes = self._make_outcomes(store)
        self._engine = Engine(
            encoders, crashed=self._outcomes.crashed, cache=open_cache(settings, self._infos)
        )
        self._engine.counts.watch = self._spans
        self._intake = JobIntake(self._engine, self._infos, self._outcomes)
        self._callers = DirectCalls(self._engine, self._infos)
        self._limits = TimeLimits(self._engine, self._outcomes.tracer, self._outcomes.counts)

    def _make_outcomes(self, store: JobStore) -> Outcomes:
        conf = self.app.conf
        return Outcomes(
            self.app,
            store,
            self._loop,
            self.failures,
            atomic=server.same_server(conf.broker_url or "", conf.result_backend or ""),
            max_attempts=self._settings.max_attempts,
            clock=self.clock,
            spans=self._spans,
        )

    def _start(self, store: JobStore) -> None:
        """Start the threads, then accept messages and calls."""
        self._engine.start()
        self._heartbeat = self._make_heartbeat(store)
        self._heartbeat.start()
        # Jobs that were cancelled before this worker started.
        self._loop.run()
        capacity.tokens, capacity.delivered = self._intake.tokens, self._intake.submit
        tasks.run_here = self._callers.run
        signals.task_revoked.connect(self._on_revoked)

    def _make_heartbeat(self, store: JobStore) -> Heartbeat:
        """The heartbeat of this worker, which also watches its threads."""
        outcomes, settings = self._outcomes, self._settings
        return Heartbeat(
            self._engine,
            store,
            settings.queue,
            self._infos,
            node=str((self.options.get("initargs") or (None, ""))[1]),
            watchdog=Watchdog(
                [*self._engine.threads, outcomes.tracer.busy], settings.forward_seconds
            ),
            metrics=partial(worker_metrics, self._engine, outcomes.counts),
            cancelled=partial(self._loop.call, state.revoked.add),
            blocked=lambda: outcomes.writer.blocked,
        )

    def register_with_event_loop(self, loop: Any) -> None:
        """Celery: the loop is about to turn, again after each reconnect."""
        self._hub = loop
        self._loop.attach(loop)
        loop.on_tick.add(self._tick)

    def _tick(self) -> None:
        """Run at each turn of the loop. Redelivered jobs of `embed` go first: each ends soon."""
        if self._others.has_suspects and not any(in_flight.redelivered for in_flight in self._open):
            self._others.turn()
        self.parking.turn()

    def holds_more(self) -> bool:
        """Whether a message that cannot be parked may be fetched: one of kombu's own transport."""
        return self._others.has_room() and self._intake.tokens(Lane.NORMAL) > 0

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        timeout_callback: Any = None,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        **_: Any,
    ) -> InFlightJob | None:
        """Take a request over. Never waits."""
        if args[0] != TASK_NAME:
            self._others.submit(OtherTask(target, args, callback))
            return None
        # Celery offers the request itself only behind its bound method.
        return self.take(callback.__self__, target, Limits(timeout, soft_timeout))

    def take(
        self, request: EmbedRequest, target: Callable[..., Any], limits: Limits
    ) -> InFlightJob:
        """Take a request of `embed` over. Never waits."""
        in_flight = InFlightJob(self, self._open, request, target, limits)
        # As Celery does with the value of `on_apply`.
        request._apply_result = ref(in_flight)  # noqa: SLF001
        if self._spans is not None:
            self._spans.open(in_flight)
        self._intake.add(in_flight)
        return in_flight

    def flush(self) -> None:
        """Celery: the connection is lost, and with it Celery's list of requests.

        Leased requests continue and are listed again. Without leases (kombu's transports) the
        broker redelivers them, so those that have not begun are dropped.
        """
        self._others.flush()
        for in_flight in list(self._open):
            if in_flight.lease is not None or in_flight.accepted:
                state.task_reserved(in_flight.request)
            elif in_flight.job is not None and self._engine.cancel(in_flight.job):
                in_flight.close()

    # -- ending early -----------------------------------------------------------------------

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Celery: `revoke(terminate=True)`. Jobs of `embed` are ended through `InFlightJob`."""
        # In a handler it is a cold shutdown, which releases all jobs.
        if pid != os.getpid() and not _in_signal_handler():
            raise NotImplementedError("a task on a thread cannot be terminated")

    def abort(self, in_flight: InFlightJob) -> None:
        """`revoke(terminate=True)` of a job that waits or runs."""
        # In a handler it is a cold shutdown, as above.
        if _in_signal_handler() or in_flight.job is None:
            return
        self._engine.cancel(in_flight.job)
        if in_flight.accepted:
            # Celery has announced it.
            in_flight.close()
        else:
            in_flight.revoke()

    def watch(self, in_flight: InFlightJob, limits: Limits) -> list[Any]:
        """A job with time limits runs now."""
        return self._limits.watch(in_flight, limits, self._hub.timer)

    def _on_revoked(self, request: Any = None, expired: bool = False, **_: Any) -> None:
        """Celery ends revoked and expired jobs by itself, through our result backend."""
        if request is not None and request.task == TASK_NAME:
            self._outcomes.counts.dropped(EXPIRED if expired else CANCELLED)

    # -- stopping ---------------------------------------------------------------------------

    def on_stop(self) -> None:
        """Warm shutdown: finish the batches that run and release the rest, within the time set."""
        if not _in_signal_handler():
            self._stop(self._settings.shutdown_seconds if hasattr(self, "_settings") else 0.0)
        elif self._stopping:
            # The second Ctrl-C, in the middle of a warm shutdown on this very thread.
            raise WorkerTerminate(1)
        # Else SIGQUIT: any lock may be held right here. Celery terminates the pool next.

    def on_terminate(self) -> None:
        """Cold shutdown: release everything at once."""
        self._stop(_COLD_SECONDS)

    def _stop(self, seconds: float) -> None:
        if self._stopping or not hasattr(self, "_heartbeat"):
            return
        self._stopping = True
        capacity.tokens = lambda _: 0
        try:
            with leases_renewed(self._settings.lease_seconds):
                self._drain(time.monotonic() + seconds)
        except WorkerTerminate:
            logger.warning("The rest is given back at once")
        self._loop.run()
        self._release_open()
        self._others.close()
        try:
            leases.flush()
        except redis.RedisError as error:
            logger.warning(
                "Leases were not released (%s); their jobs run again when they expire",
                type(error).__name__,
            )

    def _release_open(self) -> None:
        left = list(self._open)
        self._outcomes.give_back(left)
        if left:
            logger.info("%d jobs are given back to the queue", len(left))

    def _drain(self, deadline: float) -> None:
        """Finish the running batch, the pending completions and the running tasks."""

        def left() -> float:
            return max(deadline - time.monotonic(), 0.0)

        self._others.withdraw()
        self._heartbeat.stop()
        self._callers.dismiss(self._engine.close(left()))
        self._outcomes.close(left())
        self._others.wait(left())

    # -- Celery's questions -----------------------------------------------------------------

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        if not hasattr(self, "_engine"):
            return info
        return info | {
            "processes": [os.getpid()],
            "embedq": stats_of(self._engine, self._infos),
        }


def _load_models() -> tuple[Settings, dict[str, Encoder]]:
    """The settings and every served model, by name. Raises SystemExit."""
    try:
        settings = Settings.from_env()
        return settings, loading.load_encoders(settings)
    except EmbedqError as error:
        logger.critical("embedq cannot start: %s", error.message)
        raise SystemExit(EX_CONFIG) from error


def _in_signal_handler() -> bool:
    """Whether a signal handler of Celery runs on the main thread, which may hold any lock."""
    return bool(celery_log._in_sighandler)  # noqa: SLF001
