"""Files of the page and the documents, in memory, under an address that changes with them."""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import NamedTuple

from flask import Request, Response

#: Files of this many bytes and more are sent compressed.
_WORTH_COMPRESSING = 1_000
#: Said here, since the system's own table differs from machine to machine.
_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: What is taken from the package that brings Swagger UI.
_SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")
#: A year: another version has another address.
_FOREVER = "public, max-age=31536000, immutable"


class Asset(NamedTuple):
    """A file as it is sent; `compressed` is empty where that is not worth it."""

    content_type: str
    body: bytes
    compressed: bytes

    def response(self, request: Request) -> Response:
        """The file, compressed where the client takes that."""
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
        """The same, to be kept by whoever gets it."""
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
    # No time in it, so that every process sends the same.
    compressed = gzip.compress(body, mtime=0) if len(body) >= _WORTH_COMPRESSING else b""
    return Asset(_CONTENT_TYPES[PurePath(name).suffix], body, compressed)
