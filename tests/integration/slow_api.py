"""The API for tests of slow clients: a body must arrive within one second."""

from __future__ import annotations

from flask import Flask

import api
from api import body_deadlines


def create() -> Flask:
    """An application under gunicorn: `gunicorn 'tests.integration.slow_api:create()'`."""
    body_deadlines.GRACE_SECONDS = 1.0
    body_deadlines.LEAST_RATE = 10**9
    return api.create_app()
