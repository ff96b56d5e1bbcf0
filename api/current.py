"""The objects behind Flask's proxies.

A proxy looks its object up at each use, which costs more than most uses.
"""

from __future__ import annotations

from typing import Any

from flask import Request, g, request

# The methods of proxies have no types.
_request: Any = request
_g: Any = g


def current_request() -> Request:
    """Return the current request."""
    found: Request = _request._get_current_object()  # noqa: SLF001 - documented
    return found


def current_g() -> Any:
    """Return the values that the hooks and the routes keep for the current request."""
    return _g._get_current_object()  # noqa: SLF001 - documented
