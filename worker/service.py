"""The engine inside a program's own process: asyncio and threads, no queue."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, cast

import numpy as np

from worker.contract.errors import EmbedqError, InvalidJob, JobFailed
from worker.contract.jobs import DEFAULT_OPTIONS, JobOptions, parse_options, resolve
from worker.contract.models import ModelInfo, prompt_text
from worker.contract.outcomes import Matrix, Outcome, TextError
from worker.contract.settings import Settings
from worker.encoder.protocol import Encoder
from worker.engine import Engine, Job
from worker.loading import load_encoders

#: Seconds that `close` waits for the running batch.
_CLOSE_SECONDS = 30.0
#: Numbers that become Python floats in a few milliseconds; more of them leave the event loop.
_NUMBERS_AT_ONCE = 50_000


class TextsFailed(EmbedqError):
    """Some texts of a call have no vector; `errors` has their indices and reasons."""

    def __init__(self, errors: Sequence[TextError]) -> None:
        first = errors[0]
        super().__init__(f"{len(errors)} texts failed; input[{first.index}]: {first.message}")
        self.code = first.code
        self.errors = tuple(errors)


class ServiceClosed(EmbedqError):
    """The service was closed before the call was answered."""

    code = "service_closed"


class EngineLost(EmbedqError):
    """The engine died, for example of a lost device. This process can no longer encode."""

    code = "engine_lost"


class EmbeddingService:
    """Vectors for a threaded or asyncio program; concurrent callers share batches.

    The first call loads the model, once for all concurrent calls. Every method may be called from
    any thread; the coroutines never block their event loop. The engine's threads do the work.
    `model` is a path, a Hub id, or None for the environment's setting; the other settings come
    from the environment, too.

    Every call raises JobFailed if no text has a vector, TextsFailed if only some have one,
    InvalidJob for wrong options, ModelUnavailable, DeviceUnavailable or DeviceMemoryError if the
    model cannot be loaded, ServiceClosed, and EngineLost.
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
        #: Guards the attributes below. `_engine` is set once and then read without it.
        self._lock = threading.Lock()
        self._loading: Future[Engine] | None = None
        self._engine: Engine | None = None
        self._encoders: dict[str, Encoder] = {}
        self._infos: dict[str, ModelInfo] = {}
        self._closed = False

    async def get_embedding(self, text: str, **options: Any) -> list[float]:
        """The vector of one text; `options` are those of the task, such as `prompt_name`."""
        return (await self.get_embeddings([text], **options))[0]

    async def get_embeddings(self, texts: Sequence[str], **options: Any) -> list[list[float]]:
        """The vectors of any number of texts, in their order."""
        given, chosen = _listed(texts), parse_options(options)
        if not given:
            return []
        engine = self._engine
        if engine is None:
            engine = await asyncio.wrap_future(self._load())
        vectors = _complete(await asyncio.wrap_future(self._submit(engine, given, chosen)))
        if vectors.size <= _NUMBERS_AT_ONCE:
            return cast("list[list[float]]", vectors.tolist())
        return await asyncio.to_thread(_lists, vectors)

    def encode(self, texts: str | Sequence[str], **options: Any) -> Matrix:
        """The vectors of any number of texts, numpy float32 (n, d). Blocks the calling thread."""
        given, chosen = _listed(texts), parse_options(options)
        if not given:
            self._load().result()
            size = chosen.dimensions or resolve(chosen, self._infos).dimensions
            return np.empty((0, size), dtype=np.float32)
        vectors = _complete(self.run(given, chosen))
        # A few rows would keep the vectors of their whole batch in memory.
        return vectors if vectors.base is None else vectors.copy()

    def run(
        self, texts: Sequence[Any], options: JobOptions = DEFAULT_OPTIONS
    ) -> Outcome | JobFailed:
        """The outcome of one job of at least one text; a text that fails is part of it.

        Blocks the calling thread. Raises the other errors of every call.
        """
        future = self._submit(self._load().result(), list(texts), options)
        try:
            return future.result()
        except BaseException:
            # The wait was interrupted.
            future.cancel()
            raise

    def close(self) -> None:
        """Finish the running batch and stop; calls that wait get ServiceClosed. Idempotent."""
        with self._lock:
            self._closed = True
            loading = self._loading
        if loading is None:
            return
        concurrent.futures.wait([loading])
        engine, self._engine = self._engine, None
        if engine is None:
            return
        for job in engine.close(_CLOSE_SECONDS):
            _refuse(job, ServiceClosed("the service was closed"))
        if engine.stopped:
            for encoder in self._encoders.values():
                encoder.close()

    def __enter__(self) -> EmbeddingService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self) -> Future[Engine]:
        """The engine, loaded by the first caller. The next call retries after a failure."""
        with self._lock:
            if self._closed:
                raise ServiceClosed("the service is closed")
            if self._loading is None:
                self._loading = Future()
                # Running, so that no caller can cancel it for the others.
                self._loading.set_running_or_notify_cancel()
                threading.Thread(
                    target=self._run_loading, args=(self._loading,), name="embedq-load", daemon=True
                ).start()
            return self._loading

    def _run_loading(self, loading: Future[Engine]) -> None:
        try:
            self._encoders = load_encoders(self._settings)
            self._infos = {name: encoder.info for name, encoder in self._encoders.items()}
            engine = Engine(self._encoders, crashed=lambda error: _fail_rest(engine, error))
            engine.start()
        except BaseException as error:  # noqa: BLE001 - raised by the calls that wait for it
            with self._lock:
                self._loading = None
            loading.set_exception(error)
        else:
            self._engine = engine
            loading.set_result(engine)

    def _submit(
        self, engine: Engine, texts: list[Any], options: JobOptions
    ) -> Future[Outcome | JobFailed]:
        if not texts:
            raise InvalidJob("input holds no text", field="input")
        info = resolve(options, self._infos)
        future: Future[Outcome | JobFailed] = Future()
        job = Job("", texts, options, info, prompt=prompt_text(options, info), owner=future)
        try:
            engine.submit(job)
        except RuntimeError:
            if self._closed:
                raise ServiceClosed("the service is closed") from None
            raise EngineLost("the engine died; only another process can go on") from None
        future.add_done_callback(functools.partial(_drop_abandoned, engine, job))
        return future


def _fail_rest(engine: Engine, error: BaseException) -> None:
    """Fail the calls that wait for an engine that died."""
    for job in engine.close(_CLOSE_SECONDS):
        _refuse(job, EngineLost(f"the engine died of {type(error).__name__}"))


def _refuse(job: Job, error: EmbedqError) -> None:
    # If the writer died, some of its jobs are completed.
    if not job.owner.done() and job.owner.set_running_or_notify_cancel():
        job.owner.set_exception(error)


def _drop_abandoned(engine: Engine, job: Job, future: Future[Any]) -> None:
    """Cancel the job of a cancelled call."""
    if future.cancelled():
        engine.cancel(job)


def _listed(texts: str | Sequence[str]) -> list[Any]:
    return [texts] if isinstance(texts, str) else list(texts)


def _complete(outcome: Outcome | JobFailed) -> Matrix:
    if isinstance(outcome, JobFailed):
        raise outcome
    if outcome.errors:
        raise TextsFailed(outcome.errors)
    return outcome.vectors


def _lists(vectors: Matrix) -> list[list[float]]:
    # Row by row, so that other threads get their turn in between.
    return [row.tolist() for row in vectors]


def default_service() -> EmbeddingService:
    """The service of this process for calls of the task outside our pool."""
    with _first_call:
        return _default_service()


@functools.cache
def _default_service() -> EmbeddingService:
    return EmbeddingService()


def _forget_default_service() -> None:
    """Drop the service in a forked child, which does not have the parent's threads."""
    _default_service.cache_clear()
    _first_call.release()


_first_call = threading.Lock()
os.register_at_fork(
    before=_first_call.acquire,
    after_in_parent=_first_call.release,
    after_in_child=_forget_default_service,
)
