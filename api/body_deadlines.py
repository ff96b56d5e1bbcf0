"""Deadlines of request bodies: a slow body is cut off, so that it does not occupy the server.

A body has GRACE_SECONDS, and more time for each byte received, by LEAST_RATE. Servers read in
their own loops and may wait anew for each byte. So one thread of the process watches the deadlines
and shuts down the reading side of a late connection.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from types import TracebackType
from typing import IO, Any, Self

from flask import Request
from gunicorn.http.errors import ParseException

from api.errors import Problem

logger = logging.getLogger(__name__)

#: Seconds for a body of any size.
GRACE_SECONDS = 30.0
#: Bytes a second, on average, that a body needs beyond that: half a megabit.
LEAST_RATE = 64 * 1024
#: The connection in the WSGI environment of gunicorn and of Werkzeug's server.
_GUNICORN_SOCKET, _WERKZEUG_SOCKET = "gunicorn.socket", "werkzeug.socket"


def connection_of(request: Request) -> Any:
    """Return the socket of a request, or None if the server does not provide it."""
    environ = request.environ
    return environ.get(_GUNICORN_SOCKET) or environ.get(_WERKZEUG_SOCKET)


class TimedBody:
    """A body while it is read; a context manager."""

    def __init__(self, request: Request) -> None:
        self._stream: IO[bytes] = request.stream
        self._socket: Any = connection_of(request)
        self._thread = None if self._socket is None else _deadline_thread()
        self._late = False
        self.deadline = time.monotonic() + GRACE_SECONDS

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._thread.remove(self)

    def read(self, size: int) -> bytes:
        """At most `size` bytes, or b"" at the end.

        Raises Problem with `request_timeout` or `malformed_body`. Servers raise an OSError for
        invalid chunks (RFC 9112, 7.1), gunicorn an error of its own.
        """
        try:
            data = self._stream.read(size)
        except (OSError, ParseException) as error:
            self._check()
            raise Problem("malformed_body", "the body is cut off, or not in chunks") from error
        self._check()
        self.deadline += len(data) / LEAST_RATE
        return data

    def cut(self) -> None:
        """End the reading side: the body is late."""
        self._late = True
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError as error:
            logger.debug("A slow connection has ended: %s", error.strerror)

    def _check(self) -> None:
        if self._late:
            raise Problem(
                "request_timeout",
                f"the body came too slowly: it has {GRACE_SECONDS:g} seconds and more for each "
                f"{LEAST_RATE // 1024} KiB",
            )


class _DeadlineThread:
    """Cuts off late bodies, on a thread that starts with the first one.

    `_lock` guards `_open`, the bodies that are being read. A body is cut off only under the lock:
    the connection of a removed body may serve the next request.
    """

    def __init__(self) -> None:
        self._open: set[TimedBody] = set()
        self._lock = threading.Lock()
        self._busy = threading.Event()
        self._never = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, body: TimedBody) -> None:
        with self._lock:
            if self._thread is None:
                # Not at import, which may be before a fork.
                self._thread = threading.Thread(
                    target=self._run, name="embedq-body-deadlines", daemon=True
                )
                self._thread.start()
            self._open.add(body)
            if not self._busy.is_set():
                self._busy.set()

    def remove(self, body: TimedBody) -> None:
        with self._lock:
            self._open.discard(body)

    def _run(self) -> None:
        while True:
            self._busy.wait()
            # A body that begins during this wait has a deadline after the end of the wait.
            self._never.wait(min(self._seconds_left(), GRACE_SECONDS))
            with self._lock:
                now = time.monotonic()
                for body in [one for one in self._open if one.deadline <= now]:
                    self._open.remove(body)
                    body.cut()
                if not self._open:
                    self._busy.clear()

    def _seconds_left(self) -> float:
        """Seconds until the first of the bodies is late."""
        with self._lock:
            first = min((one.deadline for one in self._open), default=math.inf)
        return max(first - time.monotonic(), 0.0)


#: One for each process: locks made before a fork, or before gevent's patches, are not its own.
_threads: dict[int, _DeadlineThread] = {}


def _deadline_thread() -> _DeadlineThread:
    here = os.getpid()
    return _threads.get(here) or _threads.setdefault(here, _DeadlineThread())
