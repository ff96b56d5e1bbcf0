"""A program on the other end of a pipe: one request a line, one answer a line, JSON both ways.

A contestant in its own process stays warm from round to round.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import orjson

from tests.processes import ROOT, clean_environment


class Peer:
    """Starts a module of this package that calls `serve`; the block's end stops it."""

    def __init__(
        self, module: str, *arguments: str, env: Mapping[str, str | None] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=clean_environment(**(env or {})),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **request: Any) -> Any:
        """Return the answer to one request. Raises RuntimeError if the program has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(orjson.dumps(request) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        return orjson.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def serve(answer: Callable[..., Any]) -> None:
    """Answer requests, with their fields as arguments, until the other end closes."""
    # Output of libraries must not mix with the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # The other end may close before the answer is ready.
    with suppress(BrokenPipeError):
        for line in sys.stdin.buffer:
            answers.write(orjson.dumps(answer(**orjson.loads(line))) + b"\n")
            answers.flush()
    # Skip the exit handlers of libraries: their greenlets and threads no longer run.
    os._exit(0)
