"""The Flask application: its routes, and what every answer has."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flask import Blueprint, Flask, Request, Response
from flask.blueprints import BlueprintSetupState

from api import (
    auth,
    errors,
    jobs,
    mounting,
    openapi,
    operations,
    page,
    quotas,
    request_ids,
    status,
    trust,
)
from api.backend import EXTENSION, Backend
from api.current import current_g, current_request
from api.dialects.openai import errors as openai_errors
from api.dialects.openai import routes
from worker.contract.settings import Settings
from worker.metrics.traces import TRACE_HEADERS, traces_of
from worker.store.api_keys import KeyFile

if TYPE_CHECKING:
    from worker.metrics.spans import Request as Span

#: Of every answer that has not its own: answers are data for their caller, never a page.
_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


def make_app(settings: Settings | None) -> Flask:
    """See `api.create_app`."""
    app = Flask("api", static_folder=None)
    app.extensions[EXTENSION] = _assemble(app, settings)
    return app


def make_blueprint(settings: Settings | None) -> Blueprint:
    """See `api.blueprint`."""
    blueprint = Blueprint(mounting.NAME, "api")
    backend = _assemble(blueprint, settings)

    @blueprint.record
    def mount(state: BlueprintSetupState) -> None:
        state.app.extensions[EXTENSION] = backend
        mounting.keep_prefix(state)

    return blueprint


def _assemble(place: Flask | Blueprint, settings: Settings | None) -> Backend:
    """Add all routes to a place, and what every answer there has."""
    settings = settings or Settings.from_env()
    guard = auth.Guard(KeyFile(settings.api_keys_file)) if settings.api_keys_file else None
    backend = Backend.of(settings)
    errors.install(place, {f"{routes.PREFIX}/": openai_errors.response})
    for part in (jobs, operations, openapi, status, page, routes):
        place.register_blueprint(part.blueprint)
    _add_hooks(place, backend, trust.Trust(settings), guard)
    return backend


def _add_hooks(
    place: Flask | Blueprint, backend: Backend, trusted: trust.Trust, guard: auth.Guard | None
) -> None:
    """Count, time and check every request, and set the headers that every answer has."""

    @place.before_request
    def begin() -> None:
        # Nothing is connected before the first request.
        backend.eviction.start()
        request, g = current_request(), current_g()
        g.began = time.perf_counter()
        g.span = _begin_span(request)
        g.request_id = request_ids.request_id(request.headers.get(request_ids.HEADER))
        # After the values above: a rejected request is counted, too.
        endpoint = mounting.endpoint(request)
        trusted.check(request, endpoint)
        g.key = auth.authenticate(guard, request, endpoint)

    @place.after_request
    def end(response: Response) -> Response:
        request, g = current_request(), current_g()
        if "began" not in g:
            # Another application has answered before us.
            return response
        headers, route = response.headers, mounting.route(request)
        if mounting.path(request).startswith(f"{routes.PREFIX}/"):
            routes.add_headers(headers, g.began)
        if "taken" in g:
            quotas.add_headers(headers, g.taken)
        given = {name.lower() for name, _ in headers}
        for name, value in _HEADERS:
            if name.lower() not in given:
                headers.add(name, value)
        headers.add(request_ids.HEADER, g.request_id)
        seconds = time.perf_counter() - g.began
        backend.metrics.answered(request.method, route, response.status_code, seconds)
        if g.span is not None:
            facts = {"http.request.method": request.method, "http.route": route}
            facts["embedq.request_id"] = g.request_id
            g.span.end(f"{request.method} {route}", response.status_code, facts)
        return response


def _begin_span(request: Request) -> Span | None:
    """The request as a span, where somebody collects traces."""
    traces = traces_of("api")
    if traces is None:
        return None
    given = {name: request.headers.get(name, "") for name in TRACE_HEADERS}
    return traces.begin(request.method, given)
