"""`embedq.batch`, the Celery task that runs a batch; the API sends for it."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from functools import cache
from typing import Any

import redis
from celery import Task

from worker import app
from worker.batches.coordinator import Coordinator
from worker.batches.resources import Resources
from worker.contract.backoff import Backoff
from worker.store import server
from worker.store.openai_batch import FileFault
from worker.store.openai_batches import TASK_NAME, Superseded
from worker.store.storage import StorageUnavailable

logger = logging.getLogger(__name__)

#: Seconds before another try, from the first to the longest.
_BACKOFF = Backoff(0.5, 30.0)
#: Tries to read or write a batch's files before the batch fails: about two minutes.
_TRIES = 10


class BatchTask(Task):
    """Fails the batch, too, if its coordinator may not run again because it crashed workers."""

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Celery: the task has failed."""
        if args and isinstance(args[0], str):
            fault = FileFault("internal_error", "the batch cannot be run; the worker's log has why")
            with suppress(Superseded):
                Coordinator(_means(), _means().batches.claim(args[0])).fail(fault)


@app.task(base=BatchTask, name=TASK_NAME, ignore_result=True)
def batch(batch_id: str) -> None:
    """Run a batch to its end, or for a turn; then it has ended or its next run is queued.

    The task waits while Redis is away. If this process dies, the message is redelivered. A batch
    that cannot be run is failed, with retries until that succeeds.
    """
    if not isinstance(batch_id, str):
        # There is no batch to fail; the error omits the value, which may be a caller's data.
        raise TypeError(f"the id of a batch is a string, not {type(batch_id).__name__}")
    fault: FileFault | None = None
    # Never set: the thread ends with its process.
    never = threading.Event()
    for tries, pause in enumerate(_BACKOFF):
        try:
            coordinator = Coordinator(_means(), _means().batches.claim(batch_id))
            if fault is not None:
                coordinator.fail(fault)
            elif not coordinator.run():
                _means().batches.send(batch_id)
        except Superseded:
            logger.info("Batch %s is another run's, or gone", batch_id)
            return
        except redis.RedisError as error:
            logger.warning("Batch %s waits for Redis: %s", batch_id, server.reason(error))
        except StorageUnavailable as error:
            logger.warning("Batch %s waits for its files: %s", batch_id, error.message)
            if tries >= _TRIES:
                fault = FileFault(error.code, error.message)
        except Exception:
            # Failing it may have failed, too: retry until the batch ends, even after a restart.
            logger.exception("Batch %s cannot be run", batch_id)
            fault = FileFault("internal_error", "the batch cannot be run; the worker's log has why")
        else:
            return
        never.wait(pause)


@cache
def _means() -> Resources:
    return Resources.of(app)
