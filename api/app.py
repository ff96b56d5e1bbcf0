"""The Flask application: its routes, and the checks and headers of every request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Flask, Request, Response, current_app
from flask.blueprints import BlueprintSetupState

from api import auth, errors, jobs, openapi, page, quotas, request_ids, status, trust
from api.backend import EXTENSION, Backend
from api.dialects import Dialect, dialects
from api.operations import operation_of
from api.requests import current_g, current_request
from worker.contract.settings import Settings
from worker.metrics.traces import TRACE_HEADERS, traces_of
from worker.store.api_keys import KeyFile

if TYPE_CHECKING:
    from worker.metrics.spans import RequestSpan as Span

#: Headers of every response that does not set them: responses are data, never a page.
_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)
#: The blueprint that contains all others in another application.
_NAME = "embedq"

#: The routes for operators and browsers.
_RUNNING = (status.blueprint, page.blueprint, openapi.blueprint)


class _Application(Flask):
    """Flask without its search for coroutines: every function here is a plain one."""

    def ensure_sync(self, func: Any) -> Any:
        return func


def make_app(settings: Settings | None) -> Flask:
    """See `api.create_app`."""
    app = _Application("api", static_folder=None)
    app.extensions[EXTENSION] = _assemble(app, settings)
    return app


def make_blueprint(settings: Settings | None) -> Blueprint:
    """See `api.blueprint`."""
    blueprint = Blueprint(_NAME, "api")
    backend = _assemble(blueprint, settings)

    @blueprint.record
    def mount(state: BlueprintSetupState) -> None:
        state.app.extensions[EXTENSION] = backend
        backend.prefix = (state.url_prefix or "").rstrip("/")

    return blueprint


def _assemble(place: Flask | Blueprint, settings: Settings | None) -> Backend:
    """Add all routes to a place, with the checks and headers of every request there."""
    settings = settings or Settings.from_env()
    keys = auth.ApiKeys(KeyFile(settings.api_keys_file)) if settings.api_keys_file else None
    backend, others = Backend.of(settings), dialects()

    def error_response(problem: errors.Problem) -> Response:
        dialect = _dialect_of(backend.path(current_request()), others)
        shape = errors.problem_response if dialect is None else dialect.error_response
        return shape(problem)

    errors.install(place, error_response)
    place.register_blueprint(jobs.blueprint)
    for part in (*(one.blueprint for one in others), *_RUNNING):
        place.register_blueprint(part)
    _add_hooks(place, backend, trust.Trust(settings), keys, others)
    return backend


def _dialect_of(path: str, others: Sequence[Dialect]) -> Dialect | None:
    """Return the dialect of a path, also if the path has no route."""
    return next((one for one in others if path.startswith(f"{one.prefix}/")), None)


def _add_hooks(
    place: Flask | Blueprint,
    backend: Backend,
    trusted: trust.Trust,
    keys: auth.ApiKeys | None,
    others: Sequence[Dialect],
) -> None:
    """Count, time and check every request, and set the headers of every response."""

    @place.before_request
    def begin() -> None:
        # The connections of this process start with its first request.
        backend.eviction.start()
        request, g = current_request(), current_g()
        g.began = time.perf_counter()
        g.span = _begin_span(request)
        g.request_id = request_ids.request_id(request.headers.get(request_ids.HEADER))
        # After the values above: a rejected request is counted, too.
        operation = operation_of(current_app, request.endpoint)
        if operation is None or not operation.any_host:
            trusted.check(request)
        g.key = None
        # A path without a route is 404 without a key, too.
        is_open = request.endpoint is None or (operation is not None and operation.public)
        if keys is not None and not is_open:
            g.key = auth.authenticate(keys, request)

    @place.after_request
    def end(response: Response) -> Response:
        request, g = current_request(), current_g()
        if "began" not in g:
            # Another application has answered before us.
            return response
        headers, route = response.headers, backend.route(request)
        dialect = _dialect_of(backend.path(request), others)
        if dialect is not None:
            dialect.add_headers(headers, g.began)
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
    """The request as a span, or None without a trace collector."""
    traces = traces_of("api")
    if traces is None:
        return None
    given = {name: request.headers.get(name, "") for name in TRACE_HEADERS}
    return traces.begin(request.method, given)
