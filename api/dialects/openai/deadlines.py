"""How long a caller of OpenAI's API waits, and whether one still does."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable

from flask import Request

from api.body_deadlines import connection_of
from api.wait_options import LONGEST_BLOCKING_WAIT

#: Where OpenAI's clients say how many seconds they wait for an answer.
_HEADER = "X-Stainless-Read-Timeout"
#: Seconds: of the longest wait, which is also the clients' own default, and of those who say none.
_LONGEST, _USUAL = 600.0, 300.0
#: Part of a caller's time, and seconds of it at least and at most, for the answer to arrive.
_SHARE, _LEAST, _MOST = 0.05, 0.5, 10.0


def seconds_to_wait(request: Request) -> float:
    """Seconds within which a request should be answered; less than its caller waits."""
    longest = _LONGEST if request.environ.get("wsgi.multithread") else LONGEST_BLOCKING_WAIT
    stated = _stated(request.headers.get(_HEADER, ""))
    return min(_USUAL if stated is None else _before(stated), longest)


def hang_up(request: Request) -> Callable[[], bool]:
    """Tells whether the caller of `request`, which is read to its end, has closed the connection.

    Never where the server does not show the connection, or it is encrypted.
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
    """So much earlier than `seconds` that an answer arrives in time."""
    return seconds - min(max(seconds * _SHARE, _LEAST), _MOST, seconds / 2)


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other side has ended the connection; looks without waiting or reading."""
    timeout = connection.gettimeout()
    # On the object, since gevent's sockets wait by themselves whatever flags `recv` is given.
    connection.settimeout(0)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except (OSError, ValueError) as error:
        # TLS sockets take no flags: nothing can be told.
        return not isinstance(error, ValueError)
    finally:
        connection.settimeout(timeout)
