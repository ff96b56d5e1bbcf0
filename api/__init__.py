"""The REST interface: accepts jobs and serves results. Imports the contract, never the model.

In reading order:

- `app`: assemble the routes; checks and headers of every request
- `operations`: the registry of routes, for the document and the checks
- `jobs`: routes of native jobs
- `submission`: check a request, submit the job, wait for its end
- `wait_options`: parse the wait time of a request, and wait
- `job_watcher`: wake waiting requests, with one subscription per process
- `results`: serialize vectors in the requested format
- `events`: progress as server-sent events
- `dialects`: routes and formats of other services: OpenAI
- `status`, `history`: health, readiness, metrics, and the data of the page
- `page`: the page, the rendered document, and their files
- `openapi`: the OpenAPI document
- `requests`: the current request; read its body within bounds
- `body_deadlines`: cut off slow request bodies
- `responses`, `schemas`: JSON responses, and their models
- `errors`: error codes and their status
- `trust`: trusted hosts and cross-site requests
- `auth`: API keys and the jobs that they see
- `quotas`: charge requests and tokens to a key
- `backend`: the state that the routes share
- `serving`: gunicorn's configuration
- `request_ids`, `logs`: common fields of log lines
- `revocations`: announce cancelled jobs to the workers
- `metrics`, `worker_metrics`: metrics of this process and of the workers
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Blueprint, Flask

    from worker.contract.settings import Settings

__all__ = ["blueprint", "create_app"]


def create_app(settings: Settings | None = None) -> Flask:
    """Return a WSGI application; its settings come from the environment unless given.

    Raises SettingsError. Connections and threads start with the first request, in the process
    that serves it. `app.extensions["embedq"].close()` ends them.
    """
    # Imported here: gunicorn reads `api.serving` before gevent patches the modules Flask imports.
    from api.app import make_app

    return make_app(settings)


def blueprint(settings: Settings | None = None) -> Blueprint:
    """Return all routes as one blueprint, to be registered once in your own Flask application.

    `app.register_blueprint(api.blueprint(), url_prefix="/embeddings")`. Settings, errors and
    connections are those of `create_app`; hooks and error handlers apply only to these routes.
    """
    from api.app import make_blueprint

    return make_blueprint(settings)
