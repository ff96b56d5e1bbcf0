"""Where the service is found: at a server's root, or below a prefix in another application."""

from __future__ import annotations

from flask import Request, current_app
from flask.blueprints import BlueprintSetupState

#: The blueprint that has all the others inside, where the application is somebody else's.
NAME = "embedq"
_PREFIX = f"{NAME}.prefix"


def keep_prefix(state: BlueprintSetupState) -> None:
    """Remember where a blueprint was registered."""
    state.app.extensions[_PREFIX] = (state.url_prefix or "").rstrip("/")


def root(request: Request) -> str:
    """What the paths of all routes begin with, as callers see them; '' at the server's root."""
    return request.script_root + _prefix()


def path(request: Request) -> str:
    """The path of a request, as the OpenAPI document writes it."""
    return request.path.removeprefix(_prefix())


def route(request: Request) -> str:
    """The rule that a request matches, `unknown` where none does."""
    rule = request.url_rule
    return "unknown" if rule is None else rule.rule.removeprefix(_prefix())


def endpoint(request: Request) -> str | None:
    """The endpoint of a request, the same wherever it is mounted."""
    return request.endpoint and request.endpoint.removeprefix(f"{NAME}.")


def _prefix() -> str:
    prefix: str = current_app.extensions.get(_PREFIX, "")
    return prefix
