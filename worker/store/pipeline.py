"""Commands of many threads in few round trips: calls during one round trip share the next."""

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

#: Calls of one round trip, and bytes of one argument past which a call goes alone, so that others
#: do not wait for a large one.
_MOST_CALLS = 128
_LARGE = 64 * 1024

Command = tuple[Any, ...]
Script = Callable[[Sequence[str], Sequence[Any]], Command]


class SharedPipeline:
    """Group commit for a Redis client. Safe to share between threads (under gevent: greenlets).

    It has no thread of its own. A caller that finds no round trip under way makes the next one, for
    all waiting calls, and then appoints the first of the calls that came meanwhile. `_lock` guards
    `_waiting` and `_under_way` and is never held across I/O. A call belongs to the thread that
    makes its round trip, until it is woken. Each round trip takes a connection of the client's pool
    and follows the client's retry policy.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        #: Source of each script by its digest, since a server may drop its scripts.
        self._sources: dict[str, str] = {}
        self._begin()
        _all.add(self)

    def call(self, *commands: Command) -> list[Any]:
        """Return the answers to some commands. Raises redis.RedisError, also if one was refused.

        If a connection is lost, they may be sent twice. Commands of other threads may run between
        them.
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
        """Return a function that makes a command of a Lua script from its keys and arguments."""
        digest = hashlib.sha1(source.encode()).hexdigest()  # noqa: S324 - Redis names scripts so
        self._sources[digest] = source
        return lambda keys, args: ("EVALSHA", digest, len(keys), *keys, *args)

    def _begin(self) -> None:
        """Reset the state; a forked process does not run the threads of earlier calls."""
        self._lock = threading.Lock()
        self._waiting: deque[_PipelineCall] = deque()
        self._under_way = False

    def _take_part(self, call: _PipelineCall) -> None:
        """Wait for another thread's round trip to answer the call, or make one."""
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
        """Make a round trip for the waiting calls, of which this thread's is the first."""
        with self._lock:
            calls = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST_CALLS))]
        answers: list[Any] = []
        error: redis.RedisError | None = redis.ConnectionError("interrupted")
        try:
            answers, error = self._answers(calls)
        finally:
            if isinstance(error, redis.TimeoutError):
                # The waiting calls fail, too: none waits another timeout for a server that hangs.
                with self._lock:
                    calls += self._waiting
                    self._waiting.clear()
            # Before the others wake, so that the next round trip starts while they go on.
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
        """Remove a call whose wait was interrupted; commands already sent are not undone."""
        with self._lock:
            if call in self._waiting:
                self._waiting.remove(call)
            leads = call.leads
        if leads:
            self._appoint()

    def _answers(self, calls: Sequence[_PipelineCall]) -> tuple[list[Any], redis.RedisError | None]:
        """Return all answers, with refusals in their places, or the error of the round trip."""
        try:
            with self._client.pipeline(transaction=False) as pipe:
                for call in calls:
                    for command in call.commands:
                        pipe.execute_command(*command)  # type: ignore[no-untyped-call]
                return pipe.execute(raise_on_error=False), None
        except redis.RedisError as error:
            return [], error


class _PipelineCall:
    """Commands of one caller, and their answers or error."""

    __slots__ = ("answers", "commands", "error", "leads", "woken")

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self.answers: list[Any] = []
        self.error: redis.RedisError | None = None
        #: Whether this caller makes the round trip.
        self.leads = False
        # Created by the waiting thread: a lock from before gevent's patch stops all greenlets.
        self.woken = threading.Lock()
        self.woken.acquire()

    def end(self, answers: list[Any] | None, error: redis.RedisError | None) -> None:
        """Set the answers or the error, and wake the caller if it waits."""
        self.answers, self.error = answers or [], error
        if not self.leads:
            self.woken.release()


_all: weakref.WeakSet[SharedPipeline] = weakref.WeakSet()


def _begin_all() -> None:
    for trips in _all:
        trips._begin()  # noqa: SLF001 - its own module


os.register_at_fork(after_in_child=_begin_all)
