"""The timeout of a request to OpenAI's API, and whether its caller has closed the connection."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable

from flask import Request

from api.body_deadlines import connection_of
from api.wait_options import LONGEST_BLOCKING_WAIT

#: The header in which OpenAI's clients state their timeout, in seconds.
_HEADER = "X-Stainless-Read-Timeout"
#: Seconds of the longest wait, also the clients' own default, and of a wait without the header.
_LONGEST, _USUAL = 600.0, 300.0
#: Part of a caller's time, and seconds of it at least and at most, for the answer to arrive.
_SHARE, _LEAST, _MOST = 0.05, 0.5, 10.0


def seconds_to_wait(request: Request) -> float:
    """Seconds within which to answer a request; less than the caller's timeout."""
    longest = _LONGEST if request.environ.get("wsgi.multithread") else LONGEST_BLOCKING_WAIT
    stated = _stated(request.headers.get(_HEADER, ""))
    return min(_USUAL if stated is None else _before(stated), longest)


def hang_up(request: Request) -> Callable[[], bool]:
    """Return a function that tests whether the caller of `request` has closed the connection.

    The request must be read to its end. The result is False if the server does not show the
    connection, or if that is encrypted.
    """
    connection = connection_of(request)
    if connection is None:
        return lambda: False
    return lambda: _is_closed(connection)


def _stated(value: str) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


def _before(seconds: float) -> float:
    """`seconds` less the time that an answer needs to arrive."""
    return seconds - min(max(seconds * _SHARE, _LEAST), _MOST, seconds / 2)


def _is_closed(connection: socket.socket) -> bool:
    """Whether the peer has closed the connection. Does not block, and leaves data unread."""
    timeout = connection.gettimeout()
    # Set on the socket: gevent's `recv` blocks regardless of its flags.
    connection.settimeout(0)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except (OSError, ValueError) as error:
        # TLS sockets take no flags: the state is unknown.
        return not isinstance(error, ValueError)
    finally:
        connection.settimeout(timeout)
