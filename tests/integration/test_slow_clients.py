"""Clients that send a byte now and then are cut off, and do not occupy the server."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from tests.processes import START_TIMEOUT_S, Api, Processes, answers, eventually, free_port

#: Seconds between two bytes; a server could restart its timeout at each of them.
PAUSE_S = 0.2
#: Threads of the threaded server; slow clients try to take all of them.
THREADS = 4
FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'


@pytest.fixture(params=["gevent", "gthread"])
def api(
    request: pytest.FixtureRequest, processes: Processes, redis_url: str, tmp_path: Path
) -> Api:
    port = free_port()
    process = processes.python(
        *("-m", "gunicorn", "-k", request.param, "--threads", str(THREADS)),
        *("-b", f"127.0.0.1:{port}", "--no-control-socket"),
        "tests.integration.slow_api:create()",
        env={
            "CELERY_BROKER_URL": redis_url,
            "CELERY_RESULT_BACKEND": redis_url,
            "EMBEDQ_FILES": str(tmp_path / "files"),
        },
    )
    made = Api(process, f"http://127.0.0.1:{port}")
    eventually(lambda: answers(made), START_TIMEOUT_S, message=process.log)
    return made


def head(path: str, content: str, length: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {content}", length)
    return "\r\n".join((*lines, "", "")).encode()


JSON, FORM_TYPE = "application/json", "multipart/form-data; boundary=b"
REQUESTS = {
    "a JSON body": head("/jobs", JSON, "Content-Length: 100000") + b'{"input": "',
    "chunks": head("/v1/embeddings", JSON, "Transfer-Encoding: chunked") + b"ffff\r\n{",
    "an upload": head("/v1/files", FORM_TYPE, "Content-Length: 100000") + FORM,
    "no body at all": head("/jobs", JSON, "Content-Length: 10"),
}


def connect(api: Api) -> socket.socket:
    host, _, port = api.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=PAUSE_S)


def trickle(connection: socket.socket, seconds: float) -> bytes:
    """The answer to a client that sends a byte, waits, and sends the next."""
    received, ends = b"", time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            connection.sendall(b"a")
            data = connection.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            return received
        if not data:
            return received
        received += data
        if b"request_timeout" in received:
            return received
    raise AssertionError(f"the connection is still open: {received!r}")


@pytest.mark.parametrize("name", REQUESTS)
def test_a_body_that_trickles_is_cut_off(api: Api, name: str) -> None:
    with connect(api) as connection:
        connection.sendall(REQUESTS[name])
        answer = trickle(connection, 30)
    assert b" 408 " in answer.split(b"\r\n")[0], answer
    assert answers(api)


def test_a_second_slow_body_is_cut_off_like_the_first(api: Api) -> None:
    for _ in range(2):
        with connect(api) as connection:
            connection.sendall(REQUESTS["a JSON body"])
            assert b" 408 " in trickle(connection, 30).split(b"\r\n")[0]


def test_as_many_slow_clients_as_threads_do_not_stop_the_others(api: Api) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(api)) for _ in range(2 * THREADS)]
        for connection in slow:
            connection.sendall(REQUESTS["a JSON body"])
        for _ in range(3):
            assert requests.get(f"{api.url}/healthz", timeout=30).status_code == 200
    assert requests.post(f"{api.url}/jobs", json={"input": 7}, timeout=30).status_code == 422


def test_a_connection_serves_on_after_a_body_in_time(api: Api) -> None:
    with requests.Session() as session:
        for grace in range(2):
            over = time.monotonic() + 1.5 * grace
            eventually(lambda over=over: time.monotonic() >= over)  # type: ignore[misc]
            answer = session.post(f"{api.url}/jobs", json={"input": 7}, timeout=30)
            assert answer.status_code == 422
    assert "Traceback" not in api.process.log()
