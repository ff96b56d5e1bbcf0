"""The Celery pool: requests of `embed` go to the engine, all others to threads."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from celery import signals
from celery.concurrency.base import BasePool
from celery.exceptions import SoftTimeLimitExceeded
from celery.worker.state import task_reserved

from worker import loading
from worker.contract import server
from worker.contract.errors import EmbedqError, InvalidJob, JobFailed
from worker.contract.jobs import TASK_NAME, parse_call, prompt_text, resolve
from worker.contract.records import store_of
from worker.contract.settings import Settings
from worker.engine import Engine, Job
from worker.pool.loop import LoopCalls
from worker.pool.outcomes import Outcomes
from worker.pool.requests import Ticket
from worker.pool.threads import TaskThreads
from worker.presence import Presence
from worker.transport import admission, leases

logger = logging.getLogger(__name__)

#: Exit status for a model, device or setting that is not there: starting again does not help.
EX_CONFIG = 78


class TaskPool(BasePool):
    """One engine for `embedq.embed`, a few threads for everything else.

    `on_apply` and every callback of Celery run on the thread of its event loop, which never waits
    for the engine; what other threads have to tell Celery goes through `LoopCalls`.
    """

    signal_safe = False
    body_can_be_buffer = True

    def on_start(self) -> None:
        """Load the models, before the first message is taken. Ends the process where it cannot."""
        try:
            settings = Settings.from_env()
            encoders = loading.load_encoders(settings)
        except EmbedqError as error:
            logger.critical("embedq cannot start: %s", error.message)
            raise SystemExit(EX_CONFIG) from error
        store = store_of(self.app)
        if store is None:
            logger.critical("embedq keeps results on Redis; the result backend is another")
            raise SystemExit(EX_CONFIG)
        self._shutdown_seconds = settings.shutdown_seconds
        self._infos = {name: encoder.info for name, encoder in encoders.items()}
        self._loop = LoopCalls()
        self._threads = TaskThreads(settings.task_threads, self._loop)
        self._outcomes = Outcomes(
            self.app,
            store,
            self._loop,
            atomic=server.same_server(
                self.app.conf.broker_url or "", self.app.conf.result_backend or ""
            ),
            max_attempts=settings.max_attempts,
        )
        self._engine = Engine(encoders, self._outcomes)
        self._engine.start()
        self._presence = Presence(
            self._engine,
            store.client,
            settings.queue,
            self._infos,
            node=str((self.options.get("initargs") or (None, ""))[1]),
            forward_seconds=settings.forward_seconds,
        )
        self._presence.start()
        admission.room = self.room
        signals.task_revoked.connect(self._on_revoked)

    def register_with_event_loop(self, loop: Any) -> None:
        """Celery: the loop is about to turn, again after each reconnect."""
        self._hub = loop
        self._loop.attach(loop)

    def room(self) -> int:
        """Tokens that may still be fetched."""
        return self._engine.room() if self._threads.has_room() else 0

    def on_apply(
        self,
        target: Any,
        args: Any = None,
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        timeout_callback: Any = None,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        **_: Any,
    ) -> Ticket | None:
        """Take a request over. Never waits."""
        if args[0] != TASK_NAME:
            self._threads.submit(target, args, callback, accept_callback)
            return None
        ticket = Ticket(target, args, callback, accept_callback, timeout_callback, self._terminate)
        self._outcomes.open[ticket] = None
        if ticket.lease is not None:
            leases.keep([ticket.tag])
        try:
            ticket.job = self._job(ticket)
        except InvalidJob as error:
            self._outcomes.fail(ticket, JobFailed(error.code, error.message))
            return ticket
        self._set_timers(ticket, timeout, soft_timeout)
        self._engine.submit(ticket.job)
        return ticket

    def flush(self) -> None:
        """Celery: the connection is lost, and with it what it knew of the requests here.

        Leased ones go on and are shown again. Without leases (stock transport) the broker hands
        them out again, so those that have not begun are dropped.
        """
        for ticket in list(self._outcomes.open):
            if ticket.lease is not None or ticket.accepted:
                task_reserved(ticket.request)
            elif ticket.job is not None and self._engine.cancel(ticket.job):
                del self._outcomes.open[ticket]

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Celery: `revoke(terminate=True)`. Jobs of `embed` are ended through their ticket."""
        if pid != os.getpid():
            raise NotImplementedError("a task on a thread cannot be terminated")

    def on_stop(self) -> None:
        """Warm shutdown: finish what is encoding, give the rest back, within the time set."""
        self._stop(self._shutdown_seconds)

    def on_terminate(self) -> None:
        """Cold shutdown: give everything back at once."""
        self._stop(1.0)

    def _stop(self, seconds: float) -> None:
        if not hasattr(self, "_engine"):
            return
        deadline = time.monotonic() + seconds
        admission.room = lambda: 0
        self._loop.detach()
        self._presence.stop()
        left = self._engine.close(seconds)
        self._outcomes.close(max(deadline - time.monotonic(), 0.1))
        self._loop.run()
        self._give_back([job.owner for job in left])
        if not self._threads.close(max(deadline - time.monotonic(), 0.0)):
            logger.warning("Tasks that still run are given up; their messages come back")
        self._loop.run()
        leases.flush()

    def _give_back(self, tickets: list[Ticket]) -> None:
        leases.release([ticket.tag for ticket in tickets if ticket.tag])
        for ticket in tickets:
            if not ticket.tag:
                ticket.request.reject(requeue=True)
        if tickets:
            logger.info("%d jobs are given back to the queue", len(tickets))

    def _job(self, ticket: Ticket) -> Job:
        """Raises InvalidJob."""
        texts, options = parse_call(ticket.request.args, ticket.request.kwargs)
        info = resolve(options, self._infos)
        return Job(
            ticket.id,
            texts,
            options,
            info,
            prompt=prompt_text(options, info),
            owner=ticket,
            alone=ticket.redelivered,
        )

    def _on_revoked(self, request: Any = None, **_: Any) -> None:
        """Celery ends revoked and expired jobs by itself, most before they get here."""
        if request is not None and request.task == TASK_NAME:
            self._outcomes.close_revoked(request.id)

    def _terminate(self, ticket: Ticket) -> None:
        if ticket.job is not None and self._engine.cancel(ticket.job):
            self._outcomes.open.pop(ticket, None)

    def _set_timers(self, ticket: Ticket, hard: float | None, soft: float | None) -> None:
        """Celery's time limits, counted from here on."""
        if hard:
            ticket.timers.append(self._hub.timer.call_after(hard, self._time_out, (ticket, hard)))
        if soft:
            ticket.timers.append(
                self._hub.timer.call_after(soft, self._time_out_softly, (ticket, soft))
            )

    def _time_out(self, ticket: Ticket, seconds: float) -> None:
        if ticket.job is not None and self._engine.cancel(ticket.job):
            ticket.accept()
            ticket.time_out(False, seconds)
            self._outcomes.close_failed(ticket, "time_limit", f"took more than {seconds} s")

    def _time_out_softly(self, ticket: Ticket, seconds: float) -> None:
        if ticket.job is not None and self._engine.cancel(ticket.job):
            ticket.accept()
            ticket.time_out(True, seconds)
            self._outcomes.fail(ticket, SoftTimeLimitExceeded(seconds))

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        if not hasattr(self, "_engine"):
            return info
        engine = self._engine
        return info | {
            "processes": [os.getpid()],
            "embedq": {
                "models": {
                    name: f"{model.backend} {model.dtype} on {model.device}"
                    for name, model in self._infos.items()
                },
                "packed": {name: model.packed for name, model in self._infos.items()},
                "batch_tokens": engine.budgets,
                "batches": engine.batches,
                "texts": engine.texts,
                "tokens": engine.tokens,
                "splits": engine.splits,
                "waiting_tokens": engine.waiting_tokens,
                "tokens_per_second": round(engine.tokens_per_second(), 1),
                "leases": leases.stats(),
            },
        }
