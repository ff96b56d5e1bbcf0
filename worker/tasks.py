"""`embed`, the task that users call. Imports neither torch nor flask.

In a worker with our pool, the vectors are ready before the body runs. Elsewhere (a direct call,
`apply()`, another pool), the body encodes the texts itself with the same engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from celery import Task
from celery.result import AsyncResult

from worker import app
from worker.contract.errors import InvalidJob, JobFailed
from worker.contract.estimates import USUAL_MODEL
from worker.contract.jobs import DEFAULT_OPTIONS, TASK_NAME, JobOptions, parse_call, parse_options
from worker.contract.messages import new_headers, new_id, shown_args
from worker.contract.outcomes import Outcome
from worker.contract.results import payload, plain
from worker.store import celery_jobs
from worker.store.submissions import JobRequest

#: Results of the pool by task id: the return value of `embed`, or the exception that it raises.
#: The pool adds one right before it runs the body, on the same thread.
ready: dict[str, Any] = {}
#: Runs a job on the engine of this process's pool; None without such a pool.
run_here: Callable[[list[Any], JobOptions], Outcome | JobFailed] | None = None


class EmbedTask(Task):
    """Keeps texts out of events and logs, and writes a record of each job for the REST API."""

    #: Vectors are useless in a log.
    resultrepr_maxsize = 64
    Request = "worker.pool.request:EmbedRequest"
    Strategy = "worker.pool.strategy:strategy"

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        **options: Any,
    ) -> Any:
        """As in Celery; the record is written before the message is sent."""
        task_id = task_id or new_id()
        texts = _texts(args, kwargs)
        options.setdefault("argsrepr", shown_args(len(texts)))
        options.setdefault("kwargsrepr", "{}")
        options["headers"] = new_headers() | (options.get("headers") or {})
        for name, absolute in (("countdown", "eta"), ("expires", "expires")):
            if isinstance(options.get(name), int | float):
                options[absolute] = celery_jobs.at(self.app, options.pop(name))
        if self.app.conf.task_always_eager or options.get("retries"):
            return super().apply_async(args, kwargs, task_id, **options)
        recorded = celery_jobs.submit(self.app, task_id, texts, _options(kwargs))
        try:
            return super().apply_async(args, kwargs, task_id, **options)
        except Exception:
            if recorded:
                celery_jobs.withdraw(self.app, task_id)
            raise

    def delay_many(self, inputs: Iterable[Any], **options: Any) -> list[AsyncResult]:
        """Submit `delay(input, **options)` for each of `inputs` in one round trip to Redis.

        This bypasses Celery's producer: its signals are not sent, and the jobs wait in the default
        queue. Without Redis for both messages and results, each input is a call of `delay`. Raises
        InvalidJob before any job is submitted, or OperationalError if Redis cannot be reached.
        """
        calls = [parse_call([value], options) for value in inputs]
        store = None if self.app.conf.task_always_eager else celery_jobs.queue_of(self.app)
        if store is None:
            return [self.delay(texts, **options) for texts, _ in calls]
        queue = self.app.conf.task_default_queue
        jobs = [JobRequest.of(*call, USUAL_MODEL, queue=queue) for call in calls]
        with celery_jobs.as_sending():
            store.submit_many(jobs)
        return [self.AsyncResult(job.id) for job in jobs]


@app.task(bind=True, base=EmbedTask, name=TASK_NAME, throws=(JobFailed,))
def embed(self: EmbedTask, input: Any, **options: Any) -> dict[str, Any]:
    """Vectors of one text or a list of texts, as a JSON-ready dict.

    Arguments and result are described in the README: `input` (one string or 1 to 4,096), `model`,
    `prompt_name` or `prompt`, `dimensions`, `normalize`, `truncate`, `long`, `encoding_format`.
    Raises JobFailed, with a `code`, if no text of the job has a vector.
    """
    if self.request.id in ready:
        result = ready.pop(self.request.id)
        if isinstance(result, BaseException):
            raise result
        return cast("dict[str, Any]", result)
    return _embed(input, options)


def _embed(value: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        texts, options = parse_call([value], kwargs)
        outcome = (run_here or _run_by_service)(texts, options)
    except InvalidJob as error:
        raise JobFailed(error.code, error.message) from error
    if isinstance(outcome, Outcome):
        return plain(payload(outcome, options.encoding_format))
    raise outcome


def _run_by_service(texts: list[Any], options: JobOptions) -> Outcome | JobFailed:
    # Loads torch, which producers do not need.
    from worker.service import default_service

    return default_service().run(texts, options)


def _texts(args: Any, kwargs: Any) -> list[Any]:
    value = args[0] if args else (kwargs or {}).get("input")
    return list(value) if isinstance(value, list | tuple) else [value]


def _options(kwargs: Any) -> JobOptions:
    """The options of a call, for an estimate; the worker rejects invalid ones."""
    options = {name: value for name, value in (kwargs or {}).items() if name != "input"}
    try:
        return parse_options(options) if options else DEFAULT_OPTIONS
    except InvalidJob:
        return DEFAULT_OPTIONS
