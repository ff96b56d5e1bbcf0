"""The engine inside somebody's own process: asyncio and threads, no queue."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, cast

from worker.contract.errors import EmbedqError, JobFailed
from worker.contract.jobs import (
    DEFAULT_OPTIONS,
    JobOptions,
    TextError,
    check_input,
    parse_options,
    prompt_text,
    resolve,
)
from worker.contract.models import ModelInfo
from worker.contract.results import Matrix, Outcome
from worker.contract.settings import Settings
from worker.engine import Engine, Job
from worker.loading import load_encoders

#: Seconds that `close` waits for the running batch.
_CLOSE_SECONDS = 30.0


class TextsFailed(EmbedqError):
    """Some texts of a call have no vector; `errors` says which and why."""

    def __init__(self, errors: Sequence[TextError]) -> None:
        first = errors[0]
        super().__init__(f"{len(errors)} texts failed; input[{first.index}]: {first.message}")
        self.code = first.code
        self.errors = tuple(errors)


class ServiceClosed(EmbedqError):
    """The service was closed before the call was answered."""

    code = "service_closed"


class EmbeddingService:
    """Vectors for a threaded or asyncio program; concurrent callers share batches.

    The model is loaded on the first call, once, however many come together. Every method may be
    called from any thread; the coroutines never block their event loop. The threads that work are
    the engine's. `model` is a path, a Hub id, or None for what the environment says; the other
    settings come from the environment too.

    Raises JobFailed where no text has a vector, TextsFailed where some have none, InvalidJob for
    wrong options, ModelUnavailable and its kin on the first call.
    """

    def __init__(self, model: str | None = None, device: str = "auto") -> None:
        settings = Settings.from_env()
        if model is not None:
            named = Settings.from_env({"EMBEDQ_MODEL": model})
            settings = dataclasses.replace(settings, models=named.models)
        if device != "auto":
            named = Settings.from_env({"EMBEDQ_DEVICE": device})
            settings = dataclasses.replace(settings, device=named.device)
        self._settings = settings
        self._loading = threading.Lock()
        self._engine: Engine | None = None
        self._infos: dict[str, ModelInfo] = {}
        self._closed = False

    async def get_embedding(self, text: str, **options: Any) -> list[float]:
        """The vector of one text; `options` are those of the task, such as `prompt_name`."""
        return (await self.get_embeddings([text], **options))[0]

    async def get_embeddings(self, texts: Sequence[str], **options: Any) -> list[list[float]]:
        """The vectors of some texts, in their order."""
        if self._engine is None:
            await asyncio.get_running_loop().run_in_executor(None, self._start)
        outcome = await asyncio.wrap_future(self._submit(list(texts), options))
        return cast("list[list[float]]", _complete(outcome).tolist())

    def encode(self, texts: str | Sequence[str], **options: Any) -> Matrix:
        """The vectors of some texts, numpy float32 (n, d). Blocks the calling thread."""
        return _complete(self.run(check_input(texts), parse_options(options)))

    def run(self, texts: Sequence[Any], options: JobOptions = DEFAULT_OPTIONS) -> Any:
        """What became of a job, `Outcome` or `JobFailed`, texts failing one by one.

        Blocks the calling thread. Raises InvalidJob and ServiceClosed.
        """
        self._start()
        return self._submit_checked(list(texts), options).result()

    def close(self) -> None:
        """Finish the running batch and stop; calls that wait get ServiceClosed. Idempotent."""
        with self._loading:
            self._closed = True
            engine, self._engine = self._engine, None
        if engine is not None:
            for job in engine.close(_CLOSE_SECONDS):
                job.owner.set_exception(ServiceClosed("the service was closed"))

    def __enter__(self) -> EmbeddingService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Engine:
        with self._loading:
            if self._closed:
                raise ServiceClosed("the service is closed")
            if self._engine is None:
                encoders = load_encoders(self._settings)
                self._infos = {name: encoder.info for name, encoder in encoders.items()}
                engine = Engine(encoders, _Futures())
                engine.start()
                self._engine = engine
            return self._engine

    def _submit(self, texts: list[str], options: dict[str, Any]) -> Future[Outcome | JobFailed]:
        check_input(texts)
        return self._submit_checked(texts, parse_options(options) if options else DEFAULT_OPTIONS)

    def _submit_checked(self, texts: list[Any], options: JobOptions) -> Future[Outcome | JobFailed]:
        engine = self._engine
        if engine is None:
            raise ServiceClosed("the service is closed")
        info = resolve(options, self._infos)
        future: Future[Outcome | JobFailed] = Future()
        job = Job(
            uuid.uuid4().hex, texts, options, info, prompt=prompt_text(options, info), owner=future
        )
        future.add_done_callback(functools.partial(_drop_abandoned, engine, job))
        engine.submit(job)
        return future


class _Futures:
    """The engine's sink: every job has a future."""

    def admit(self, job: Job) -> bool:
        return bool(job.owner.set_running_or_notify_cancel())

    def started(self, jobs: Sequence[Job]) -> None:
        pass

    def progressed(self, jobs: Sequence[Job]) -> None:
        pass

    def finished(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if not job.owner.cancelled():
                job.owner.set_result(job.outcome())

    def crashed(self, error: BaseException) -> None:
        # The thread's exception is reported by threading; later calls find the engine closed.
        pass


def _drop_abandoned(engine: Engine, job: Job, future: Future[Any]) -> None:
    """A caller who gave up costs no forward pass."""
    if future.cancelled():
        engine.cancel(job)


def _complete(outcome: Outcome | JobFailed) -> Matrix:
    if isinstance(outcome, JobFailed):
        raise outcome
    if outcome.errors:
        raise TextsFailed(outcome.errors)
    return outcome.vectors


@functools.cache
def default_service() -> EmbeddingService:
    """The service of this process for calls of the task outside our pool."""
    return EmbeddingService()
