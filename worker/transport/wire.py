"""A connection to Redis that never blocks: commands are pipelined, replies read on arrival."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import NoScriptError, RedisError, ResponseError

from worker.transport.command import Command

#: Gets the answer, an error reply included, as a value.
OnReply = Callable[[Any], None]
#: The connection went away before the answer came: the command may have run or not.
OnLost = Callable[[], None]

#: Raised by redis-py if a connection is lost; its error replies are values here.
CONNECTION_LOST = (RedisError, OSError)


@dataclass(slots=True)
class _PendingCall:
    command: Command | None
    on_reply: OnReply
    on_lost: OnLost
    #: Monotonic time by which a living server has answered.
    due: float


class Wire:
    """Pipelines commands on one connection; owned by the thread that polls its socket.

    `on_readable` takes every answer that has arrived, also those that TLS or the parser already
    hold, since the poller would not report them again. Any failure of the connection ends in
    `drop`, which calls `on_lost` of each outstanding command and raises no exception.
    """

    def __init__(self, connection: Any, patience: float) -> None:
        """`connection`: a redis-py connection, not yet connected. `patience`: seconds for a reply.

        Raises:
            redis.ConnectionError: the server cannot be reached.
        """
        self.connection = connection
        self.patience = patience
        self._calls: deque[_PendingCall] = deque()
        connection.connect()
        self.fd: int = connection._sock.fileno()  # noqa: SLF001 - redis-py has no other way

    @property
    def alive(self) -> bool:
        return self.connection._sock is not None  # noqa: SLF001

    @property
    def busy(self) -> bool:
        return bool(self._calls)

    def call(self, command: Command, on_reply: OnReply, on_lost: OnLost) -> None:
        """Call a script; one that the server does not know is sent in full."""
        self._send(command.by_digest, _PendingCall(command, on_reply, on_lost, self._due()))

    def send(self, args: Sequence[Any], on_reply: OnReply, on_lost: OnLost, *, wait: float) -> None:
        """Send a plain command that the server may take `wait` seconds to answer."""
        self._send(args, _PendingCall(None, on_reply, on_lost, self._due() + wait))

    def on_readable(self) -> None:
        """Take the answers that have arrived."""
        while self.alive and self._take_one():
            pass

    def wait(self, timeout: float) -> None:
        """Block until every answer has arrived; drops the connection after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.alive and self._calls:
            left = deadline - time.monotonic()
            try:
                ready = left > 0 and self.connection.can_read(timeout=left)
            except CONNECTION_LOST:
                ready = False
            if not ready:
                self.drop()
                return
            self._take_one()

    def overdue(self) -> bool:
        """Whether a living server would have answered by now: the connection is half-open."""
        return bool(self._calls) and time.monotonic() > self._calls[0].due

    def drop(self) -> None:
        """Close the connection and call `on_lost` of each outstanding command."""
        self.connection.disconnect()
        calls, self._calls = self._calls, deque()
        for call in calls:
            call.on_lost()

    def _due(self) -> float:
        return time.monotonic() + self.patience

    def _send(self, args: Sequence[Any], call: _PendingCall) -> None:
        self._calls.append(call)
        if not self.alive:
            self.drop()
            return
        try:
            # redis-py's own health check would read answers that belong to others.
            self.connection.send_command(*args, check_health=False)
        except CONNECTION_LOST:
            self.drop()

    def _take_one(self) -> bool:
        """Take one answer. Return False if it has not arrived or the connection is lost."""
        reply: Any
        try:
            if not self.connection.can_read(timeout=0):
                return False
            reply = self.connection.read_response(disconnect_on_error=False)
        except ResponseError as error:
            reply = error
        except CONNECTION_LOST:
            self.drop()
            return False
        if not self._calls:  # An answer without a call: the stream is out of step.
            self.drop()
            return False
        call = self._calls.popleft()
        if isinstance(reply, NoScriptError) and call.command is not None:
            call.due = self._due()
            self._send(call.command.in_full, call)
        else:
            call.on_reply(reply)
        return True


class ConnectionBackoff:
    """A pause between calls that a server refuses, twice as long each time; seconds."""

    FIRST = 0.1
    LONGEST = 5.0

    def __init__(self) -> None:
        self._seconds = 0.0
        self._until = 0.0

    @property
    def on(self) -> bool:
        return time.monotonic() < self._until

    def longer(self) -> float:
        self._seconds = min(max(2 * self._seconds, self.FIRST), self.LONGEST)
        self._until = time.monotonic() + self._seconds
        return self._seconds

    def reset(self) -> None:
        self._seconds = self._until = 0.0
