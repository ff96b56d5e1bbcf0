"""The embedq worker: batches the texts of many jobs through one model on one device.

In reading order:

- `metrics`: metrics, traces and logs, for both processes
- `contract`: shared with the API, without I/O: settings, jobs, results, keys, messages
- `store`: state in Redis: jobs, OpenAI batches, files, API keys, workers
- `openai`: OpenAI's embeddings requests and answers
- `tasks`: the task `embed`
- `result_backend`: the result backend, which completes jobs
- `collection`: submit many texts through the task, in order, with a bounded number under way
- `transport`: fetch, lease and acknowledge messages
- `pool`: the Celery pool, which completes jobs and writes the heartbeat
- `engine`: the threads: tokenize, schedule, encode, write
- `cache`: vectors of earlier texts, in Redis
- `encoder`: the model on its device; the only package that imports torch
- `loading`: load models by their settings
- `tune`, `tuned`: find the best settings for a machine, and load them
- `watchdog`: stop a worker with a hung thread
- `batches`: a task that coordinates OpenAI batches
- `service`: the same engine inside another program
- `offline`: embed files of texts into files of vectors; a client of the REST interface
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

    So `embedq --help` and the report of a wrong setting need no valid environment and do not
    import Celery.
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
        # The command lines of Celery and Flask would show a traceback.
        raise SystemExit(f"embedq cannot start: {error.message}") from error
    globals()["app"] = app
    return app
