"""Callers in a process of their own: each submits a job, waits for its vectors, takes the next.

A `Load` starts `python -m bench.load rest|celery|plain ADDRESS` and tells it what to submit; it
answers with the seconds that it all took and those of each job. All callers are greenlets of one
thread; the HTTP client is a socket and a parser of two headers, so that the load leaves the cores
to what is measured.
"""

from __future__ import annotations

if __name__ == "__main__":
    # Before anything else makes a socket; Celery's client then has one greenlet that listens.
    from gevent import monkey

    monkey.patch_all()

import functools
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import orjson

from bench.peer import Peer, serve

#: Seconds that a caller waits for one job.
TIMEOUT = 120
Call = Callable[[list[str]], dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """What some callers saw."""

    seconds: float
    #: Seconds of each job, in the order in which they ended.
    waits: Sequence[float]
    #: The job as REST shows it, in the order in which they ended; empty over Celery.
    jobs: Sequence[dict[str, Any]]


class Load(Peer):
    """The process with the callers, seen from the benchmark."""

    def __init__(self, kind: str, address: str) -> None:
        env = {"CELERY_BROKER_URL": address, "CELERY_RESULT_BACKEND": address}
        super().__init__("bench.load", kind, address, env=None if kind == "rest" else env)

    def __call__(
        self, texts: Sequence[str], *, texts_a_job: int = 1, callers: int = 1, pause: float = 0.0
    ) -> Answer:
        """Submit all texts and wait for their vectors. Raises where a job did not succeed."""
        answer = self.ask(texts=list(texts), texts_a_job=texts_a_job, callers=callers, pause=pause)
        return Answer(**answer)


@contextmanager
def loads(**addresses: str) -> Iterator[dict[str, Load]]:
    """Callers of each kind, ended with the block."""
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(Load(kind, address)) for kind, address in addresses.items()
        }


# -- the process ----------------------------------------------------------------------------


def main() -> None:
    kind, address = sys.argv[1:]
    connect = {"rest": _rest, "celery": _celery, "plain": _plain}[kind]
    serve(functools.partial(_submit, connect, address))


def _submit(
    connect: Callable[[str], Call],
    address: str,
    *,
    texts: list[str],
    texts_a_job: int,
    callers: int,
    pause: float,
) -> dict[str, Any]:
    # Only in this process: who starts it needs no greenlets.
    import gevent

    parts = [texts[at : at + texts_a_job] for at in range(0, len(texts), texts_a_job)]
    waiting = iter(parts)
    waits: list[float] = []
    jobs: list[dict[str, Any]] = []

    def caller() -> None:
        call = connect(address)
        for part in waiting:
            began, clock = time.perf_counter(), time.time()
            job = call(part)
            waits.append(time.perf_counter() - began)
            if job:
                jobs.append(job | {"asked": clock, "answered": time.time()})
            if pause:
                gevent.sleep(pause)

    began = time.perf_counter()
    gevent.joinall([gevent.spawn(caller) for _ in range(callers)], raise_error=True)
    return {"seconds": time.perf_counter() - began, "waits": waits, "jobs": jobs}


def _rest(address: str) -> Call:
    """`POST /jobs` with `Prefer: wait`, on one connection a caller."""
    url = urlsplit(address)
    connection = socket.create_connection((url.hostname, url.port), timeout=TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answers = connection.makefile("rb")

    def call(texts: list[str]) -> dict[str, Any]:
        body = orjson.dumps({"input": texts})
        connection.sendall(
            b"POST /jobs HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            b"Prefer: wait=60\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        status, answer = _read(answers)
        if status != 200 or answer["status"] != "succeeded":
            raise RuntimeError(f"a job was answered {status}: {answer}")
        _check(answer.pop("result"), texts)
        return answer

    return call


def _read(answers: BinaryIO) -> tuple[int, dict[str, Any]]:
    status = int(answers.readline().split()[1])
    length = 0
    while (line := answers.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, orjson.loads(answers.read(length))


def _celery(_: str) -> Call:
    """`embed.delay(texts).get()`; the address is in the environment."""
    from worker.tasks import embed

    def call(texts: list[str]) -> dict[str, Any]:
        _check(embed.delay(texts).get(timeout=TIMEOUT), texts)
        return {}

    return call


def _plain(_: str) -> Call:
    """The same for the task of `bench.plain_task`."""
    from bench.plain_task import app

    def call(texts: list[str]) -> dict[str, Any]:
        answer = app.send_task("bench.encode", args=[texts])
        _check({"embeddings": answer.get(timeout=TIMEOUT)}, texts)
        return {}

    return call


def _check(result: dict[str, Any], texts: list[str]) -> None:
    if len(result["embeddings"]) != len(texts):
        raise RuntimeError(f"{len(texts)} texts gave {json.dumps(result)[:200]}")


if __name__ == "__main__":
    main()
