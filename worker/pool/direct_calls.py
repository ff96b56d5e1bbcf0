"""Calls of `embed` as a plain function inside the worker, as users' own tasks make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from celery.exceptions import WorkerShutdown

from worker.contract.errors import JobFailed
from worker.contract.jobs import JobOptions, resolve
from worker.contract.models import ModelInfo, prompt_text
from worker.contract.outcomes import Outcome
from worker.engine import Engine, Job


class DirectCalls:
    """Shares the engine between calls in this process and the jobs of the queue.

    A second engine would load the model again. `run` may be called from any thread but the
    engine's own.
    """

    def __init__(self, engine: Engine, infos: Mapping[str, ModelInfo]) -> None:
        self._engine = engine
        self._infos = infos

    def run(self, texts: Sequence[Any], options: JobOptions) -> Outcome | JobFailed:
        """Return the outcome of one job. Blocks the calling thread. Raises InvalidJob.

        If the worker stops meanwhile it raises WorkerShutdown, which Celery's tracer passes on, so
        that the calling task runs again elsewhere.
        """
        info = resolve(options, self._infos)
        future: Future[Outcome | JobFailed] = Future()
        prompt = prompt_text(options, info)
        try:
            self._engine.submit(Job("", list(texts), options, info, prompt=prompt, owner=future))
        except RuntimeError:
            raise WorkerShutdown from None
        return future.result()

    def dismiss(self, jobs: Sequence[Job]) -> None:
        """Raise WorkerShutdown in the callers of jobs that the closed engine returned."""
        for job in jobs:
            if isinstance(job.owner, Future):
                job.owner.set_exception(WorkerShutdown())
