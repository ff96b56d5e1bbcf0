"""Commands of many threads in few round trips: what comes while one is under way goes together."""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import redis

#: Commands of one round trip, and bytes of one argument past which a call goes alone: others must
#: not wait for a large one.
_MOST_CALLS = 128
_LARGE = 64 * 1024

Command = tuple[Any, ...]
Script = Callable[[Sequence[str], Sequence[Any]], Command]


class SharedPipeline:
    """Group commit for a Redis client. Safe to share between threads (under gevent: greenlets).

    No thread of its own: whoever finds no round trip under way makes the next one, for all who
    wait by then, and appoints the first of those who came meanwhile. `_waiting` and `_under_way`
    are shared under `_lock`, never held across I/O; a call belongs to who makes its round trip,
    until it is woken. Each takes a connection of the client's pool, and tries as often as it says.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        #: Of scripts, by digest: a server may forget them.
        self._sources: dict[str, str] = {}
        self._begin()
        _all.add(self)

    def call(self, *commands: Command) -> list[Any]:
        """The answers to some commands. Raises redis.RedisError, also where one was refused.

        They may be sent twice where a connection is lost, and others' may come between them.
        """
        call = _PipelineCall(commands)
        if any(isinstance(part, bytes) and len(part) > _LARGE for one in commands for part in one):
            call.end(*self._answers([call]))
        else:
            self._take_part(call)
        if call.error is not None:
            raise call.error
        for at, answer in enumerate(call.answers):
            if isinstance(answer, redis.exceptions.NoScriptError):
                _, digest, *rest = commands[at]
                call.answers[at] = self.call(("EVAL", self._sources[digest], *rest))[0]
            elif isinstance(answer, redis.RedisError):
                raise answer
        return call.answers

    def script(self, source: str) -> Script:
        """A Lua script as a command, from its keys and arguments."""
        digest = hashlib.sha1(source.encode()).hexdigest()  # noqa: S324 - Redis names scripts so
        self._sources[digest] = source
        return lambda keys, args: ("EVALSHA", digest, len(keys), *keys, *args)

    def _begin(self) -> None:
        """As if nobody had called yet: in a forked process nobody has who still runs."""
        self._lock = threading.Lock()
        self._waiting: deque[_PipelineCall] = deque()
        self._under_way = False

    def _take_part(self, call: _PipelineCall) -> None:
        """Be answered by somebody else's round trip, or make one."""
        with self._lock:
            self._waiting.append(call)
            call.leads = not self._under_way
            self._under_way = True
        try:
            if not call.leads:
                call.woken.acquire()
        except BaseException:
            self._abandon(call)
            raise
        if call.leads:
            self._lead()

    def _lead(self) -> None:
        """Make a round trip for those who wait, oneself the first of them."""
        with self._lock:
            calls = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST_CALLS))]
        answers: list[Any] = []
        error: redis.RedisError | None = redis.ConnectionError("interrupted")
        try:
            answers, error = self._answers(calls)
        finally:
            if isinstance(error, redis.TimeoutError):
                # Nobody is to wait for a server that hangs as long again.
                with self._lock:
                    calls += self._waiting
                    self._waiting.clear()
            # Before the others wake, so that the next round trip is under way while they go on.
            self._appoint()
            taken = iter(answers)
            for call in calls:
                call.end(None if error else list(islice(taken, len(call.commands))), error)

    def _appoint(self) -> None:
        with self._lock:
            following = self._waiting[0] if self._waiting else None
            self._under_way = following is not None
            if following is not None:
                following.leads = True
        if following is not None:
            following.woken.release()

    def _abandon(self, call: _PipelineCall) -> None:
        """Leave while waiting, ended by somebody else; what was sent stays sent."""
        with self._lock:
            if call in self._waiting:
                self._waiting.remove(call)
            leads = call.leads
        if leads:
            self._appoint()

    def _answers(self, calls: Sequence[_PipelineCall]) -> tuple[list[Any], redis.RedisError | None]:
        """What the server says to all of it, a refusal in its place, or why nothing was heard."""
        try:
            with self._client.pipeline(transaction=False) as pipe:
                for call in calls:
                    for command in call.commands:
                        pipe.execute_command(*command)  # type: ignore[no-untyped-call]
                return pipe.execute(raise_on_error=False), None
        except redis.RedisError as error:
            return [], error


class _PipelineCall:
    """Commands of one caller, and how they ended."""

    __slots__ = ("answers", "commands", "error", "leads", "woken")

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self.answers: list[Any] = []
        self.error: redis.RedisError | None = None
        #: Whether this one makes the round trip.
        self.leads = False
        # Made by who waits on it: before gevent patches a process its locks stop all greenlets.
        self.woken = threading.Lock()
        self.woken.acquire()

    def end(self, answers: list[Any] | None, error: redis.RedisError | None) -> None:
        """Give it its answers or its error, and wake it where it waits."""
        self.answers, self.error = answers or [], error
        if not self.leads:
            self.woken.release()


_all: weakref.WeakSet[SharedPipeline] = weakref.WeakSet()


def _begin_all() -> None:
    for trips in _all:
        trips._begin()  # noqa: SLF001 - its own module


os.register_at_fork(after_in_child=_begin_all)
