"""A user's own application: more tasks than `embed`, and a device that tests can stop.

Started as `celery -A tests.integration.users_app worker`, or with `-A worker` and `-I`.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis
from celery import Task, signals

from bench.stock import use_stock_transport
from worker import app, loading, service
from worker.contract.settings import Settings
from worker.encoder.protocol import Encoder
from worker.encoder.tokens import TokenBlock
from worker.engine import Job
from worker.tasks import embed

# Another transport and pool, for comparison. Each process of the pool loads the model itself.
if os.environ.get("STOCK"):
    use_stock_transport(app)
if pool := os.environ.get("POOL"):
    app.conf.update(worker_pool=pool, worker_proc_alive_timeout=60)

NOTES = "notes"
#: Files in the folder of this environment variable. While `closed` exists, forward passes stand
#: still until they remove `step`, one pass each; each of them adds a line to `entered`.
GATE = "GATE"
CLOSED, ENTERED, STEP = "closed", "entered", "step"
#: While this file exists there, forward passes raise a device error with its content.
FAULT = "fault"
#: A text that ends the process that encodes it.
DEADLY = "deadly nightshade"
#: Texts that end the process in the tokenizer or while its result is written, and a text that
#: hangs in the tokenizer.
DEADLY_TO_READ, DEADLY_TO_WRITE = "deadly hemlock", "deadly oleander"
ENDLESS = "deadly slow"


@functools.cache
def server() -> redis.Redis:
    return redis.Redis.from_url(os.environ["CELERY_BROKER_URL"])


def note(*what: Any) -> None:
    """Write a note that a test can read."""
    server().rpush(NOTES, json.dumps(what))


@app.task
def count(result: dict[str, Any]) -> int:
    """Vectors in a result of `embed`."""
    return len(result["embeddings"])


@app.task
def counts(results: list[dict[str, Any]]) -> list[int]:
    return [len(result["embeddings"]) for result in results]


@app.task
def write_texts(number: int) -> list[str]:
    return [f"text {n}" for n in range(number)]


@app.task
def note_result(result: dict[str, Any], key: str) -> None:
    note(key, len(result["embeddings"]))


@app.task
def note_failure(job_id: str, key: str) -> None:
    note(key, job_id)


@app.task
def note_exception(request: Any, error: BaseException, trace: Any, key: str) -> None:
    note(key, request.id, type(error).__name__, list(error.args))


@app.task
def switch_interval() -> float:
    """Seconds of a thread's turn in the interpreter."""
    return sys.getswitchinterval()


@app.task
def fail(message: str) -> None:
    raise ValueError(message)


@app.task(bind=True, max_retries=3)
def succeed_at(self: Task, attempt: int) -> int:
    """Retry until the given attempt."""
    if self.request.retries < attempt:
        raise self.retry(countdown=0)
    retries: int = self.request.retries
    return retries


@app.task(bind=True)
def call_embed(self: Task, texts: list[str]) -> str:
    """Send a job without waiting for it."""
    job_id: str = embed.delay(texts).id
    return job_id


@app.task(bind=True, max_retries=1)
def become_embed(self: Task, texts: list[str]) -> None:
    """Retry once, then replace itself by a chain with a job in it."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    raise self.replace(embed.s(texts) | count.s())


@app.task
def embed_here(texts: list[str]) -> list[int]:
    """Call `embed` as a function, in the worker."""
    return [count(embed(texts)), count(embed.apply((texts,)).result)]


@app.task
def sleep(seconds: float, key: str = "") -> float:
    time.sleep(seconds)
    if key:
        note(key)
    return seconds


class Stopped(BaseException):
    """Not an Exception."""


@app.task
def leave(how: str) -> None:
    """Raise an exception that no task should raise."""
    raise {
        "exit": SystemExit(),
        "exit 3": SystemExit(3),
        "exit with words": SystemExit("goodbye"),
        "interrupt": KeyboardInterrupt(),
        "generator": GeneratorExit(),
        "memory": MemoryError(),
        "own": Stopped("by hand"),
    }[how]


@app.task
def die() -> None:
    """End the process that runs it."""
    os._exit(9)


@app.task
def tell_time() -> float:
    return time.time()


@app.task(acks_late=False)
def sleep_acknowledged(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


_TRACED = (signals.task_prerun, signals.task_postrun, signals.task_success, signals.task_failure)


@app.task
def listen() -> None:
    """Connect receivers of signals, in the process that runs tasks."""
    for signal in _TRACED:
        signal.connect(_heard, sender=embed, weak=False, dispatch_uid="heard")


@app.task
def stop_listening() -> None:
    for signal in _TRACED:
        signal.disconnect(sender=embed, dispatch_uid="heard")


def _heard(signal: Any, sender: Any, **arguments: Any) -> None:
    name = next(name for name in vars(signals) if getattr(signals, name) is signal)
    note(name, sorted(set(arguments) & {"args", "kwargs", "result", "retval", "task_id", "state"}))


@signals.task_revoked.connect(sender=embed)
def _revoked(request: Any, terminated: bool, expired: bool, **_: Any) -> None:
    note("task_revoked", request.id, bool(terminated), bool(expired))


@signals.worker_process_init.connect
def _load_model(**_: Any) -> None:
    service.default_service().encode(["warm"])


class GatedEncoder:
    """The real model behind a gate that tests close; one text ends the process."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._deadly = encoder.tokenize([DEADLY]).ids.tolist()
        self._gate = Path(os.environ[GATE])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def forward(self, batch: TokenBlock, *, cores: int = 1) -> Any:
        if any(
            batch.ids[start:stop].tolist() == self._deadly
            for start, stop in zip(batch.offsets, batch.offsets[1:], strict=False)
            if stop - start == len(self._deadly)
        ):
            os._exit(9)
        if self._gate.joinpath(FAULT).exists():
            raise RuntimeError(self._gate.joinpath(FAULT).read_text())
        if self._gate.joinpath(CLOSED).exists():
            with self._gate.joinpath(ENTERED).open("a") as entered:
                entered.write("\n")
            while self._gate.joinpath(CLOSED).exists() and not self._taken():
                time.sleep(0.005)
        return self._encoder.forward(batch, cores=cores)

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> TokenBlock:
        if DEADLY_TO_READ in texts:
            os._exit(9)
        if ENDLESS in texts:
            threading.Event().wait()
        return self._encoder.tokenize(texts, prompt)

    def begin(self, batch: TokenBlock, *, cores: int = 1) -> None:
        """Stop every batch at the gate."""

    def _taken(self) -> bool:
        try:
            self._gate.joinpath(STEP).unlink()
        except FileNotFoundError:
            return False
        return True


_outcome = Job.outcome


def _deadly_outcome(job: Job) -> Any:
    """Run on the writer's thread, before results are stored."""
    if DEADLY_TO_WRITE in job.texts:
        os._exit(9)
    return _outcome(job)


_load = loading.load_encoders


def _load_gated(settings: Settings) -> dict[str, Any]:
    return {name: GatedEncoder(encoder) for name, encoder in _load(settings).items()}


# Callers of the tasks import this module as well.
if GATE in os.environ:
    Job.outcome = _deadly_outcome  # type: ignore[method-assign]
    loading.load_encoders = _load_gated
    service.load_encoders = _load_gated


def names(tasks: Sequence[Any] = (embed, count, sleep)) -> list[str]:
    """Names of these tasks in the worker."""
    return [task.name for task in tasks]
