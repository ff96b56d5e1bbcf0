"""The embedq worker: batches the texts of many jobs through one model on one device.

In reading order:

- `contract`   what API and worker agree on: settings, jobs, results, keys
- `tasks`      `embed`, the task that users call
- `collection` many texts through the task, in order, some at a time
- `bulk`       batches of requests, coordinated by a task of their own
- `transport`  how messages are fetched, leased and acknowledged
- `pool`       how Celery hands over requests and how they end
- `engine`     the threads: tokenise, schedule, encode, write
- `packing`, `tokens`  texts side by side in one batch, and what they weigh
- `encoder`    the model on its device; the only package that knows torch
- `loading`    models by their settings; `tuned` is what `tune` found best for a machine
- `counting`   counts that cost next to nothing to keep
- `cache`      vectors of earlier texts, in Redis
- `presence`   what the worker says of itself
- `watchdog`   threads that hang, and the end of a worker with one
- `service`    the same engine inside somebody's own process
- `corpus`     files of texts to files of vectors
- `remote`     a service, called over REST
- `verify`     vectors beside the library's
- `local`      Valkey, workers and the API on one machine
- `cli`        the `embedq` command
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
