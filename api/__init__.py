"""The REST interface: jobs in, vectors out. Knows the contract, never the model.

In reading order:

- `jobs`         routes of native jobs
- `submission`   from a request body to an accepted job
- `waits`        how long a caller wants to wait
- `waiting`      one subscription a process wakes whoever waits
- `results`      vectors in the form asked for
- `events`       progress as server-sent events
- `operations`   health, readiness, metrics
- `bodies`       requests, read within bounds
- `schemas`      what is answered, as models
- `openapi`      the same as a document
- `errors`       what went wrong, and its status
- `callers`      who asks, and whose jobs they see
- `backend`      what the routes share
- `liveness`, `limits`, `revocations`, `metrics`, `answers`   its parts
"""

from __future__ import annotations

import time

from flask import Flask, Response, g, request

from api import errors, jobs, openapi, operations
from api.backend import EXTENSION, Backend
from worker.contract.settings import Settings

__all__ = ["create_app"]

#: Of every answer that has not its own: answers are data for their caller, never a page.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(settings: Settings | None = None) -> Flask:
    """A WSGI application; its settings are those of the environment unless given.

    Raises SettingsError. Nothing is connected yet, and no thread runs: both come with the first
    request, in the process that serves it. `app.extensions["embedq"].close()` ends them.
    """
    app = Flask(__name__, static_folder=None)
    backend = Backend.of(settings or Settings.from_env())
    app.extensions[EXTENSION] = backend
    errors.install(app)
    app.register_blueprint(jobs.blueprint)
    app.register_blueprint(operations.blueprint)
    app.register_blueprint(openapi.blueprint)
    _observe(app, backend)
    return app


def _observe(app: Flask, backend: Backend) -> None:
    """Count and time every request, and set the headers that every answer has."""

    @app.before_request
    def begin() -> None:
        g.began = time.perf_counter()

    @app.after_request
    def end(response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        route = request.url_rule.rule if request.url_rule is not None else "unknown"
        seconds = time.perf_counter() - g.began
        backend.metrics.answered(request.method, route, response.status_code, seconds)
        return response
