"""Routes for browsers: the page, the rendered OpenAPI document, and their files.

The files are in memory, under an address that changes with them.
"""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import Final, NamedTuple

from flask import Blueprint, Request, Response, request

from api.errors import Problem
from api.operations import RUNNING, Answer, Operation

blueprint = Blueprint("page", __name__)

_OWN = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: No inline script or style, no foreign origins, and strings never become markup.
_PAGE_POLICY = f"{_OWN}; require-trusted-types-for 'script'; trusted-types 'none'"
#: Swagger UI draws its icons from `data:` addresses and makes markup of its own.
_DOCS_POLICY = _OWN.replace("img-src 'self'", "img-src 'self' data:")
_HTML: Final = Answer("It does.", content={"text/html": {"schema": {"type": "string"}}})
#: Files of this many bytes and more are sent compressed.
_WORTH_COMPRESSING = 1_000
#: Stated here, since the system's own table differs from machine to machine.
_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Files of the package that brings Swagger UI.
_SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")
#: A year: another version has another address.
_FOREVER = "public, max-age=31536000, immutable"


@blueprint.get("/")
@Operation(RUNNING, {200: _HTML}, public=True)
def show_page() -> Response:
    """A page to look at.

    It reads `/status` and `/jobs`.
    """
    return _html("index.html", _PAGE_POLICY)


@blueprint.get("/docs")
@Operation(RUNNING, {200: _HTML}, public=True)
def show_docs() -> Response:
    """This document, rendered.

    By Swagger UI.
    """
    return _html("docs.html", _DOCS_POLICY)


@blueprint.get("/assets/<digest>/<name>")
@Operation(RUNNING, {}, public=True, hidden=True)
def send_asset(digest: str, name: str) -> Response:
    """A file of the current version; pages of an older one are loaded anew."""
    known = assets()
    if digest != known.digest or name not in known.files:
        raise Problem("not_found", "there is no such file in this version")
    return known.files[name].immutable(request)


def _html(name: str, policy: str) -> Response:
    """A page that browsers revalidate each time."""
    response = assets().files[name].response(request)
    response.headers["Content-Security-Policy"] = policy
    response.headers["Cache-Control"] = "no-cache"
    response.add_etag(weak=True)
    response.make_conditional(request)
    return response


class Asset(NamedTuple):
    """A file as it is sent; `compressed` is empty if compression does not pay."""

    content_type: str
    body: bytes
    compressed: bytes

    def response(self, request: Request) -> Response:
        """The file, compressed if the client accepts it."""
        packed = bool(self.compressed) and request.accept_encodings["gzip"] > 0
        response = Response(
            self.compressed if packed else self.body, content_type=self.content_type
        )
        if self.compressed:
            response.vary.add("Accept-Encoding")
        if packed:
            response.content_encoding = "gzip"
        return response

    def immutable(self, request: Request) -> Response:
        """The same response, for caches to store."""
        response = self.response(request)
        response.headers["Cache-Control"] = _FOREVER
        return response


class Assets(NamedTuple):
    """All files by name, and a digest of them."""

    digest: str
    files: dict[str, Asset]


@cache
def assets() -> Assets:
    """Read once. Pages know the address of the rest: `{{assets}}` stands for it in HTML."""
    own = {one.name: one.read_bytes() for one in (resources.files("api") / "static").iterdir()}
    package = resources.files("flask_swagger_ui") / "dist"
    found = own | {name: (package / name).read_bytes() for name in _SWAGGER_UI}
    digest = hashlib.sha256()
    for name, body in sorted(found.items()):
        digest.update(b"%s\0%d\0%s" % (name.encode(), len(body), body))
    shown = digest.hexdigest()[:16]
    files = {name: _asset(name, body, f"assets/{shown}") for name, body in found.items()}
    return Assets(shown, files)


def _asset(name: str, body: bytes, address: str) -> Asset:
    if name.endswith(".html"):
        body = body.replace(b"{{assets}}", address.encode())
    # Without a timestamp, so that every process sends the same bytes.
    compressed = gzip.compress(body, mtime=0) if len(body) >= _WORTH_COMPRESSING else b""
    return Asset(_CONTENT_TYPES[PurePath(name).suffix], body, compressed)
