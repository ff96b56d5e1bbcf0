"""Callers in their own process: each submits a job, waits for its vectors and takes the next.

A `Load` starts `python -m bench.load rest|openai|celery|plain ADDRESS` and sends it the texts. The
process answers with the total seconds and the seconds of each job. All callers are greenlets of one
thread. The HTTP client is a socket and a small parser of the answer, so that the load leaves the
cores to the measured processes.
"""

from __future__ import annotations

if __name__ == "__main__":
    # Before the first socket. Celery's client then has one greenlet that listens.
    from gevent import monkey

    monkey.patch_all()

import functools
import gc
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
from worker.contract.settings import DEFAULT_MODEL_NAME

#: Timeout of one job, seconds.
TIMEOUT = 120
Call = Callable[[list[str]], dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """The callers' measurements of one load."""

    seconds: float
    #: Seconds of each job, in the order of completion.
    waits: Sequence[float]
    #: The jobs in REST's form, in the order of completion; empty for other kinds than `rest`.
    jobs: Sequence[dict[str, Any]]


class Load(Peer):
    """The benchmark's handle of the process with the callers."""

    def __init__(self, kind: str, address: str) -> None:
        env = {"CELERY_BROKER_URL": address, "CELERY_RESULT_BACKEND": address}
        by_http = address.startswith("http")
        super().__init__("bench.load", kind, address, env=None if by_http else env)

    def __call__(
        self, texts: Sequence[str], *, texts_a_job: int = 1, callers: int = 1, pause: float = 0.0
    ) -> Answer:
        """Submit all texts and wait for their vectors. Raises if a job did not succeed."""
        answer = self.ask(texts=list(texts), texts_a_job=texts_a_job, callers=callers, pause=pause)
        return Answer(**answer)


@contextmanager
def loads(**addresses: str) -> Iterator[dict[str, Load]]:
    """Start callers of each kind; the block's end stops them."""
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(Load(kind, address)) for kind, address in addresses.items()
        }


# -- the process ----------------------------------------------------------------------------


def main() -> None:
    kind, address = sys.argv[1:]
    connect = {"rest": _rest, "openai": _openai, "celery": _celery, "plain": _plain}[kind]
    # Garbage is collected between two turns. A collected result of Celery takes a lock, which must
    # not happen in the middle of a wait of gevent.
    gc.disable()
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
    # Only in this process: the benchmark that starts it needs no greenlets.
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
    seconds = time.perf_counter() - began
    gc.collect()
    return {"seconds": seconds, "waits": waits, "jobs": jobs}


def _rest(address: str) -> Call:
    """Return a function that calls `POST /jobs` with `Prefer: wait`."""
    post = _poster(f"{address}/jobs", "Prefer: wait=60\r\n")

    def call(texts: list[str]) -> dict[str, Any]:
        answer: dict[str, Any]
        status, answer = post({"input": texts})
        if status != 200 or answer["status"] != "succeeded":
            raise RuntimeError(f"a job was answered {status}: {answer}")
        _check(answer.pop("result")["embeddings"], texts)
        return answer

    return call


def _openai(address: str) -> Call:
    """Return a function that sends an OpenAI embeddings request to any compatible server."""
    post = _poster(address)

    def call(texts: list[str]) -> dict[str, Any]:
        status, answer = post({"model": DEFAULT_MODEL_NAME, "input": texts})
        if status != 200:
            raise RuntimeError(f"a request was answered {status}: {answer}")
        _check(answer["data"], texts)
        return {}

    return call


def _poster(address: str, headers: str = "") -> Callable[[object], tuple[int, Any]]:
    """Return a function that sends JSON on one connection and returns status and answer."""
    url = urlsplit(address)
    connection = socket.create_connection((url.hostname, url.port), timeout=TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answers = connection.makefile("rb")
    head = (
        f"POST {url.path} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\n{headers}Content-Length: "
    ).encode()

    def post(request: object) -> tuple[int, Any]:
        body = orjson.dumps(request)
        connection.sendall(b"%s%d\r\n\r\n%s" % (head, len(body), body))
        return _read(answers)

    return post


def _read(answers: BinaryIO) -> tuple[int, Any]:
    first = answers.readline()
    if not first:
        raise ConnectionError("the connection was closed in place of an answer")
    status = int(first.split()[1])
    length = 0
    while (line := answers.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, orjson.loads(answers.read(length))


def _celery(_: str) -> Call:
    """Return a function for `embed.delay(texts).get()`; the address is in the environment."""
    from worker.tasks import embed

    def call(texts: list[str]) -> dict[str, Any]:
        _check(embed.delay(texts).get(timeout=TIMEOUT)["embeddings"], texts)
        return {}

    return call


def _plain(_: str) -> Call:
    """Return a function that calls the task of `bench.plain_task`."""
    from bench.plain_task import app

    def call(texts: list[str]) -> dict[str, Any]:
        answer = app.send_task("bench.encode", args=[texts])
        _check(answer.get(timeout=TIMEOUT), texts)
        return {}

    return call


def _check(vectors: Sequence[object], texts: list[str]) -> None:
    if len(vectors) != len(texts):
        raise RuntimeError(f"{len(texts)} texts gave {len(vectors)} vectors")


if __name__ == "__main__":
    main()
