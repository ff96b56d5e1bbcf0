"""Redis clients from the URLs that Celery takes."""

from __future__ import annotations

from typing import Any
from urllib.parse import (
    SplitResult,
    parse_qs,
    parse_qsl,
    unquote,
    urlencode,
    urlsplit,
    urlunsplit,
)

import redis
from redis.backoff import ExponentialBackoff
from redis.connection import BlockingConnectionPool, ConnectionPool
from redis.retry import Retry
from redis.sentinel import Sentinel

#: Seconds without an answer after which a server counts as gone.
SOCKET_TIMEOUT = 30.0


def reason(error: redis.RedisError) -> str:
    """The class of an error and the server's code for it, without quoted values."""
    code = str(error).partition(" ")[0]
    known = isinstance(error, redis.ResponseError) and code.isalpha() and code.isupper()
    return f"{type(error).__name__} {code}" if known else type(error).__name__


def connect(url: str, *, sentinel_master: str, **options: Any) -> redis.Redis:
    """A thread-safe client for any URL that Celery takes; connects on first use.

    `redis://`, `rediss://`, `redis+socket://PATH?virtual_host=N`, `unix://` and
    `sentinel://host:port/N;…`. As for kombu and Celery, the first Sentinel URL holds the database
    and the credentials. `options` of the client override our defaults.
    """
    defaults: dict[str, Any] = {
        "socket_timeout": SOCKET_TIMEOUT,
        "socket_connect_timeout": 5.0,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.02), 2),
    }
    options = defaults | options
    first = url.split(";")[0]
    parts = urlsplit(first)
    if parts.scheme == "sentinel":
        return _from_sentinel(url, sentinel_master, options | _tls(parts))
    if parts.scheme in ("redis+socket", "socket", "unix"):
        options.pop("socket_keepalive")
        return redis.Redis(
            unix_socket_path=unquote(parts.path),
            db=int(_socket_database(parts.query)),
            **_credentials(parts),
            **options,
        )
    return redis.Redis.from_url(_for_redis(url), **options)


def share(client: redis.Redis, connections: int, *, patience: float) -> redis.Redis:
    """Limit a client's connections: further callers wait up to `patience` seconds for one."""
    pool = client.connection_pool
    if type(pool) is ConnectionPool:
        client.connection_pool = BlockingConnectionPool(  # type: ignore[no-untyped-call]
            connections, patience, pool.connection_class, **pool.connection_kwargs
        )
    else:
        # Sentinel's pool cannot wait; past the limit it raises an error.
        pool.max_connections = max(pool.max_connections, 20 * connections)
    return client


def same_server(first: str, second: str) -> bool:
    """Whether two URLs name the same database, so that one transaction can span both."""
    return _place(first) == _place(second)


def _place(url: str) -> tuple[str, str]:
    """The server's address and the number of its database."""
    parts = [urlsplit(part) for part in url.split(";")]
    first = parts[0]
    if first.scheme in ("redis+socket", "socket", "unix"):
        return unquote(first.path), _socket_database(first.query)
    port = 26379 if first.scheme == "sentinel" else 6379
    hosts = ",".join(
        sorted(f"{part.hostname or 'localhost'}:{part.port or port}" for part in parts)
    )
    return hosts, first.path.strip("/") or "0"


def _socket_database(query: str) -> str:
    values = parse_qs(query)
    return (values.get("virtual_host") or values.get("db") or ["0"])[0].strip("/") or "0"


def _from_sentinel(url: str, master: str, options: dict[str, Any]) -> redis.Redis:
    parts = [urlsplit(part) for part in url.split(";")]
    database = int(parts[0].path.strip("/") or 0)
    hosts = [(part.hostname or "localhost", part.port or 26379) for part in parts]
    sentinel = Sentinel(hosts, socket_timeout=options["socket_connect_timeout"])  # type: ignore[no-untyped-call]
    client: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
        master, db=database, **_credentials(parts[0]), **options
    )
    return client


def _credentials(parts: SplitResult) -> dict[str, Any]:
    """User and password of a URL, percent-decoded."""
    return {
        "username": unquote(parts.username or "") or None,
        "password": unquote(parts.password or "") or None,
    }


def _tls(parts: SplitResult) -> dict[str, Any]:
    """The client's options for the `ssl_…` parameters of a Sentinel's URL; empty without TLS."""
    given = {name: value for name, value in parse_qsl(parts.query) if name.startswith("ssl_")}
    if not given:
        return {}
    return {
        "ssl": True,
        **given,
        "ssl_cert_reqs": _cert_reqs(given.get("ssl_cert_reqs", "required")),
        "ssl_check_hostname": given.get("ssl_check_hostname", "true").lower() != "false",
    }


def _for_redis(url: str) -> str:
    """A URL with the certificate requirement in redis-py's spelling."""
    parts = urlsplit(url)
    query = [
        (name, _cert_reqs(value) if name == "ssl_cert_reqs" else value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    ]
    return urlunsplit(parts._replace(query=urlencode(query)))


def _cert_reqs(value: str) -> str:
    """`none` for kombu's `CERT_NONE`, and so on."""
    return value.removeprefix("CERT_").lower() if value.startswith("CERT_") else value
