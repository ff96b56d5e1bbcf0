"""The REST interface: jobs in, vectors out. Knows the contract, never the model.

In reading order:

- `application`  the routes put together
- `jobs`         routes of native jobs
- `submission`   from a request body to an accepted job
- `waits`        how long a caller wants to wait
- `waiting`      one subscription a process wakes whoever waits
- `results`      vectors in the form asked for
- `events`       progress as server-sent events
- `bulk`         OpenAI's files and batches
- `operations`   health, readiness, metrics
- `page`         the page to look at, the documents rendered, and their `assets`
- `status`       what the page shows, and its `history`
- `mounting`     at a server's root, or inside somebody's own application
- `bodies`       requests, read within bounds
- `arrival`      bodies that come too slowly are cut off
- `schemas`      what is answered, as models
- `openapi`      the same as a document
- `errors`       what went wrong, and its status
- `trust`        hosts and pages that may ask without keys
- `callers`      who asks, by their key, and whose jobs they see
- `quotas`       what a key may still submit
- `backend`      what the routes share
- `serving`      gunicorn's configuration
- `request_ids`, `logs`   what lines of the log have in common
- `limits`, `revocations`, `metrics`, `worker_figures`, `answers`   its parts
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Blueprint, Flask

    from worker.contract.settings import Settings

__all__ = ["blueprint", "create_app"]


def create_app(settings: Settings | None = None) -> Flask:
    """A WSGI application; its settings are those of the environment unless given.

    Raises SettingsError. Nothing is connected yet, and no thread runs: both come with the first
    request, in the process that serves it. `app.extensions["embedq"].close()` ends them.
    """
    # Not before: gunicorn reads `api.serving` before gevent has patched what Flask imports.
    from api.application import make_app

    return make_app(settings)


def blueprint(settings: Settings | None = None) -> Blueprint:
    """All routes as one blueprint, to be registered once in one's own Flask application.

    `app.register_blueprint(api.blueprint(), url_prefix="/embeddings")`. Settings, errors and
    connections as in `create_app`; hooks and error handlers are for these routes alone.
    """
    from api.application import make_blueprint

    return make_blueprint(settings)
