"""Protection of an API without keys from web pages: trusted hosts, and no cross-site changes.

A page reaches a local API by DNS rebinding, under the page's own host name, or by a cross-site
form or script, which names its origin. Clients other than browsers send neither header.
"""

from __future__ import annotations

import re
from functools import lru_cache

from flask import Request

from api.errors import Problem
from worker.contract.hosts import ANY_HOST, LOCAL_HOSTS, TrustedHosts, split_host
from worker.contract.settings import Settings

#: Safe methods: they do not change state (RFC 9110, 9.2.1).
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
#: `Sec-Fetch-Site` of the API's own page, and of an address that the user entered.
_OWN_SITE = frozenset({"same-origin", "none"})
#: The request's target, by gunicorn's name and by that of other servers.
_TARGETS = ("RAW_URI", "REQUEST_URI")
_AUTHORITY_END = re.compile(r"[/?#]")
#: Number of `Host` headers with a cached check; a server bounds their lengths.
_HOSTS_KEPT = 64
_PORTS = {"http": "80", "https": "443"}


class Trust:
    """Checks requests by the settings of an application."""

    def __init__(self, settings: Settings) -> None:
        self._without_keys = settings.api_keys_file is None
        default = LOCAL_HOSTS if self._without_keys else ANY_HOST
        hosts = TrustedHosts(settings.trusted_hosts or default)
        #: Whether a `Host` header is trusted. Most callers send the same one in every request.
        self._trusts = lru_cache(_HOSTS_KEPT)(lambda header: split_host(header)[0] in hosts)

    def check(self, request: Request) -> None:
        """Raise Problem with `untrusted_host` or `cross_site`. Call this before reading a body."""
        self._check_host(request)
        if self._without_keys and request.method not in SAFE_METHODS and not _is_same_site(request):
            raise Problem(
                "cross_site",
                "a page of another site sent this request; without API keys only the API's own "
                "pages and programs other than browsers may change anything",
            )

    def _check_host(self, request: Request) -> None:
        """Raise Problem unless `Host`, and the host of an absolute target, are trusted."""
        named = [request.environ.get("HTTP_HOST", "")]
        for variable in _TARGETS:
            target: str = request.environ.get(variable, "/")
            if not target.startswith(("/", "*")):
                # The host of an absolute target precedes `Host` (RFC 9112, 3.2.2).
                named.append(_AUTHORITY_END.split(target.partition("://")[2], maxsplit=1)[0])
        for one in named:
            if not self._trusts(one):
                raise Problem(
                    "untrusted_host",
                    f"Host is {one[:255]!r}, which EMBEDQ_TRUSTED_HOSTS does not include",
                )


def _is_same_site(request: Request) -> bool:
    """Whether no page of another origin has sent the request."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site.strip().lower() in _OWN_SITE
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    scheme, _, authority = origin.lower().partition("://")
    default = _PORTS.get(scheme, "")
    host, port = split_host(authority)
    ours, our_port = split_host(request.environ["HTTP_HOST"])
    # The scheme itself is unknown here behind a proxy that ends TLS.
    return bool(default and host) and (host, port or default) == (ours, our_port or default)
