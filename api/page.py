"""Routes for people: the page, the rendered OpenAPI document, and what both are made of."""

from __future__ import annotations

from flask import Blueprint, Response, request

from api.assets import assets
from api.errors import Problem

blueprint = Blueprint("page", __name__)

_OWN = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: No inline script or style, nothing from elsewhere, and no string ever becomes markup.
_PAGE_POLICY = f"{_OWN}; require-trusted-types-for 'script'; trusted-types 'none'"
#: Swagger UI draws its icons from `data:` addresses and makes markup of its own.
_DOCS_POLICY = _OWN.replace("img-src 'self'", "img-src 'self' data:")


@blueprint.get("/")
def show_page() -> Response:
    """The page; what it shows it reads from `/status` and `/jobs`."""
    return _html("index.html", _PAGE_POLICY)


@blueprint.get("/docs")
def show_docs() -> Response:
    """The OpenAPI document, rendered by Swagger UI."""
    return _html("docs.html", _DOCS_POLICY)


@blueprint.get("/assets/<digest>/<name>")
def send_asset(digest: str, name: str) -> Response:
    """A file of the current version; pages of an older one are loaded anew."""
    known = assets()
    if digest != known.digest or name not in known.files:
        raise Problem("not_found", "there is no such file in this version")
    return known.files[name].immutable(request)


def _html(name: str, policy: str) -> Response:
    """A page that is asked for again each time, and sent where it has changed."""
    response = assets().files[name].response(request)
    response.headers["Content-Security-Policy"] = policy
    response.headers["Cache-Control"] = "no-cache"
    response.add_etag(weak=True)
    response.make_conditional(request)
    return response
