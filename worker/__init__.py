"""The embedq worker: batches the texts of many jobs through one model on one device.

In reading order:

- `contract`: shared with the API: settings, jobs, results, keys
- `tasks`: the task `embed`
- `backend`: the result backend, which completes jobs
- `collection`: submit many texts through the task, in order, with a bounded number under way
- `bulk`: a task that coordinates batches of requests
- `transport`: fetch, lease and acknowledge messages
- `pool`: the Celery pool, which completes jobs
- `engine`: the threads: tokenize, schedule, encode, write
- `packing`, `tokens`: pack texts into a batch; blocks of tokens
- `encoder`: the model on its device; the only package that imports torch
- `loading`: load models by their settings
- `tune`, `tuned`: find the best settings for a machine, and load them
- `counting`: cheap counters
- `cache`: vectors of earlier texts, in Redis
- `presence`: write the worker's heartbeat
- `watchdog`: stop a worker with a hung thread
- `service`: the same engine inside another program
- `corpus`: embed files of texts into files of vectors
- `remote`: a client of the REST interface
- `verify`: compare vectors with the library's
- `local`: Valkey, workers and the API on one machine
- `cli`: the command `embedq`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["app"]


def __getattr__(name: str) -> Celery:
    """Make `worker.app` on first use.

    So `embedq --help`, and an embedq that reports a wrong setting, need no valid environment,
    and do not wait for Celery.
    """
    if name != "app":
        raise AttributeError(f"module 'worker' has no attribute {name!r}")
    from click import get_current_context

    from worker.contract.app import make_app
    from worker.contract.errors import SettingsError
    from worker.contract.settings import Settings

    try:
        app = make_app(Settings.from_env())
    except SettingsError as error:
        if get_current_context(silent=True) is None:
            raise
        # The command lines of Celery and Flask would bury it in a traceback.
        raise SystemExit(f"embedq cannot start: {error.message}") from error
    globals()["app"] = app
    return app
