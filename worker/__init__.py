"""The embedq worker: batches the texts of many jobs through one model on one device.

In reading order:

- `contract`   what API and worker agree on: settings, jobs, results, keys
- `tasks`      `embed`, the task that users call
- `transport`  how messages are fetched, leased and acknowledged
- `pool`       how Celery hands over requests and how they end
- `engine`     the threads: tokenise, encode, write
- `batching`   which texts share a forward pass
- `encoder`    the model on its device; the only package that knows torch
- `presence`   what the worker says of itself, and the watch over its device
- `service`    the same engine inside somebody's own process
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
    from worker.contract.app import make_app
    from worker.contract.settings import Settings

    app = make_app(Settings.from_env())
    globals()["app"] = app
    return app
