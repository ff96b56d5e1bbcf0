"""gunicorn's configuration: `gunicorn -c python:api.serving 'api:create_app()'`.

Any of it can be overridden on gunicorn's command line; `gunicorn 'api:create_app()'` works, too.
"""

from __future__ import annotations

import _thread
import os
import signal
from types import FrameType
from typing import Any

#: fsspec uses an asyncio event loop for buckets, which gevent's patches break.
_BUCKET = "://" in os.environ.get("EMBEDQ_FILES", "").removeprefix("file://")
#: A greenlet for each request, so that a wait costs no thread; with a bucket, a thread.
worker_class = "gthread" if _BUCKET else "gevent"
threads = 256 if _BUCKET else 1
#: Connections of one process. gunicorn's 1,000 would all be taken by a thousand waiting clients.
worker_connections = 4_000
#: Seconds that open requests and idle connections have when the server is to end.
graceful_timeout = 5
control_socket_disable = True
#: Writes gunicorn's records and the application's, as lines or as JSON (EMBEDQ_LOG_FORMAT).
logger_class = "api.logs.Logger"
#: gunicorn's own form and the request's id.
access_log_format = (
    '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %({x-request-id}o)s'
)


def post_worker_init(worker: Any) -> None:
    """Prepare a worker process that has loaded the application."""
    _freeze(worker.cfg)
    _release_on_sigterm(worker)


def _freeze(cfg: Any) -> None:
    """Make settings attributes: gunicorn looks up two dozen by `__getattr__` in each request."""
    vars(cfg).update({name: setting.get() for name, setting in cfg.settings.items()})


def _release_on_sigterm(worker: Any) -> None:
    """Let SIGTERM also end all waits, with the jobs as they stand.

    Otherwise a stop would take as long as the longest wait, and then abort it.
    """
    waiting = worker.wsgi.extensions["embedq"].waiting
    end = signal.getsignal(signal.SIGTERM)

    def release_and_end(number: int, frame: FrameType | None) -> None:
        # On another thread, since it takes a lock that the interrupted code may hold. Not with
        # `Thread.start`, which blocks: the greenlet that runs signal handlers must not.
        _thread.start_new_thread(waiting.release, ())
        if callable(end):
            end(number, frame)

    signal.signal(signal.SIGTERM, release_and_end)
