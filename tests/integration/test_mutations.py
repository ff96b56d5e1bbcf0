"""Every request costs at most an error: no 5xx, no memory past a bound; the service continues."""

from __future__ import annotations

import gzip
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import orjson
import psutil
import pytest
import requests

from api.errors import STATUS_OF
from tests.conftest import Service
from tests.mutations import Request, form_request, json_request, mutated, part
from tests.processes import eventually

MUTATIONS, SEED, CALLERS = 4000, 20, 8
#: Seconds for one answer; some of them include a wait for vectors.
ANSWER_S = 60.0
#: Bytes that a body may have by default (EMBEDQ_MAX_JOB_BYTES).
MOST = 8 * 2**20
#: MiB that a process of the API may take at any time: about 80 at rest, 270 for one body of `MOST`
#: bytes of only small values (see docs/api.md), and the bodies of all `CALLERS`.
BOUND_MIB = 512
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"a"}}'
TEXTS = ["what came before", "what comes after"]


@pytest.fixture(scope="module")
def valid(service: Service) -> list[Request]:
    """One valid request for every `POST`, and for every resource that it made."""
    model = requests.get(f"{service.url}/v1/models", timeout=30).json()["data"][0]["id"]
    upload = form_request(
        "/v1/files",
        part('name="purpose"', b"batch"),
        part('name="file"; filename="a.jsonl"', LINE.replace(b'"m"', f'"{model}"'.encode())),
    )
    job = requests.post(f"{service.url}/jobs", json={"input": TEXTS}, timeout=30).json()["id"]
    content = dict(upload.headers)
    url = f"{service.url}/v1/files"
    file = requests.post(url, data=upload.body, headers=content, timeout=30).json()["id"]
    options = {"model": model, "dimensions": 384, "encoding_format": "base64"}
    run = {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    url = f"{service.url}/v1/batches"
    batch = requests.post(url, json=run, timeout=30).json()["id"]
    return [
        json_request(
            "/jobs", {"input": ["a", "b"], "normalize": True, "truncate": True, **options}
        ),
        json_request("/v1/embeddings", {"input": "a", "user": "u", **options}),
        upload,
        json_request("/v1/batches", {**run, "metadata": {"a": "b"}}),
        json_request("/jobs?wait=5", {"input": "a", "prompt_name": None, "token_counts": True}),
        json_request("/v1/embeddings", {"input": ["a", ""], "model": model, "input_type": None}),
        json_request(f"/jobs/{job}/cancel", {}),
        json_request(f"/v1/batches/{batch}/cancel", {}),
        *(Request("GET", path) for path in ("/jobs", f"/jobs/{job}/result", f"/jobs/{job}/events")),
        *(Request("GET", path) for path in ("/v1/batches", f"/v1/files/{file}/content")),
    ]


@pytest.fixture(autouse=True)
def unharmed(service: Service) -> Iterator[None]:
    """Check after each test that the same processes serve, within the bound, and logged no bug."""
    before = family(service)
    yield
    assert family(service) == before, "a process of the API ended"
    url = f"{service.url}/jobs?wait=30"
    body = requests.post(url, json={"input": TEXTS}, timeout=60).json()
    assert body["status"] == "succeeded", body
    assert np.shape(body["result"]["embeddings"]) == (2, 384)
    for pid in before:
        assert peak_mib(pid) < BOUND_MIB
    for process in (service.api.process, service.worker):
        assert "Traceback" not in process.log(), process.log()[-5000:]


def family(service: Service) -> set[int]:
    """The processes of the API."""
    api = psutil.Process(service.api.process.pid)
    return {one.pid for one in (api, *api.children(recursive=True))}


def peak_mib(pid: int) -> float:
    """The peak memory of a process since its start, if the system reports that."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024
    resident: int = psutil.Process(pid).memory_info().rss
    return resident / 2**20


def connect(service: Service) -> socket.socket:
    address = urlsplit(service.url)
    return socket.create_connection((address.hostname, address.port), ANSWER_S)


class Answer(NamedTuple):
    """An answer; `ours` unless the server answered instead of the application."""

    status: int
    retry_after: str
    ours: bool
    body: bytes


def send(service: Service, raw: bytes, *, whole: bool = True) -> Answer | None:
    """Return the answer; None if the connection was closed without one.

    If the request is not `whole`, the sending side is closed after it.
    """
    with connect(service) as connection:
        with suppress(OSError):
            # An early refusal leaves the rest unread.
            connection.sendall(raw)
            if not whole:
                connection.shutdown(socket.SHUT_WR)
        response = HTTPResponse(connection)
        try:
            response.begin()
            body = response.read()
        except (HTTPException, ConnectionError):
            return None
        told = response.headers
        return Answer(response.status, told.get("Retry-After", ""), "X-Request-Id" in told, body)


def surprises(service: Service, raws: Sequence[bytes]) -> list[str]:
    """Whole requests with no answer, a bug's answer, or an error that is no proper problem."""
    with ThreadPoolExecutor(CALLERS) as pool:
        answers = list(pool.map(lambda raw: send(service, raw), raws))
    pairs = zip(raws, answers, strict=True)
    return [f"{answer}: {raw[:600]!r}" for raw, answer in pairs if not answer or is_bug(answer)]


def is_bug(answer: Answer) -> bool:
    """Whether this answer is wrong for every possible request."""
    if answer.status >= 500:
        return not (answer.status == 503 and answer.retry_after)
    return answer.status >= 400 and answer.ours and not is_problem(answer.body)


def is_problem(body: bytes) -> bool:
    """Whether an error has a known code, or that of a text, in one of the two forms."""
    told = orjson.loads(body)
    return told.get("error", told)["code"] in {*STATUS_OF, "invalid_text", "text_too_long"}


def test_thousands_of_mutated_requests_are_answered_without_a_server_error(
    service: Service, valid: list[Request]
) -> None:
    requests = [request.raw() for request in mutated(valid, MUTATIONS, SEED)]
    assert len(requests) == MUTATIONS
    found = surprises(service, requests)
    assert not found, "\n".join(found)


def heavy() -> dict[str, bytes]:
    """Bodies of the maximum size with the most costly values."""

    def full(
        item: bytes, before: bytes = b'{"model":"m","input":[', after: bytes = b"1]}"
    ) -> bytes:
        return before + item * ((MOST - len(before) - len(after)) // len(item)) + after

    names = b",".join(b'"%x":1' % number for number in range(MOST // 12))
    return {
        "lists": full(b"[],"),
        "objects": full(b"{},"),
        "lists beside a lone surrogate": full(b"[],", b'{"model":"m","input":["\\ud800",'),
        "token ids": full(b"1000,"),
        "texts": full(b'"",'),
        "names": b"{" + names + b"}",
        "names in an object": b'{"metadata":{' + names + b"}}",
        "one text": full(b"a", b'{"model":"m","input":"', b'"}'),
        "one escaped text": full(b"\\u00e9", b'{"model":"m","input":"', b'"}'),
        "one number": full(b"9", b'{"model":"m","dimensions":', b"}"),
        "one level in the other": full(b"["),
    }


@pytest.mark.parametrize("path", ["/jobs", "/v1/embeddings", "/v1/batches"])
def test_the_costliest_bodies_stay_within_the_stated_memory(service: Service, path: str) -> None:
    requests = [replace(json_request(path, {}), body=body).raw() for body in heavy().values()]
    assert not surprises(service, requests)


def test_gzip_bombs_stay_within_the_stated_memory(service: Service) -> None:
    empty, zeros = gzip.compress(b""), gzip.compress(bytes(100 * 2**20))
    bodies = [zeros, gzip.compress(zeros), zeros * 20, empty * (MOST // len(empty))]
    bodies += [gzip.compress(body) for body in heavy().values()]
    request = json_request("/jobs", {}).with_header("Content-Encoding", "gzip")
    assert not surprises(service, [replace(request, body=body).raw() for body in bodies])


HEAD = b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b'{"input": "a"}'
#: Requests that no library would send.
WIRE = {
    "more length than body": HEAD + b"Content-Length: 99\r\n\r\n" + BODY,
    "less length than body": HEAD + b"Content-Length: 3\r\n\r\n" + BODY,
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
    "signed length": HEAD + b"Content-Length: +14\r\n\r\n" + BODY,
    "length that is no number": HEAD + b"Content-Length: 1e1\r\n\r\n" + BODY,
    "length in other digits": HEAD + b"Content-Length: \xb2\r\n\r\n" + BODY,
    "length past every bound": HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + BODY,
    "length of thousands of digits": HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 14\r\nContent-Length: 3\r\n\r\n" + BODY,
    "length and chunks": HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks that are none": CHUNKED + b"garbage",
    "chunk without a size": CHUNKED + b"\r\n\r\n",
    "chunk of negative size": CHUNKED + b"-5\r\nabcde\r\n0\r\n\r\n",
    "chunk larger than said": CHUNKED + b"2\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk larger than anything": CHUNKED + b"F" * 40 + b"\r\n" + BODY,
    "chunk cut off": CHUNKED + b"E\r\n" + BODY[:5],
    "chunks without an end": CHUNKED + b"E\r\n" + BODY + b"\r\n",
    "chunk with a long extension": CHUNKED + b"E;" + b"x" * 100_000 + b"\r\n" + BODY,
    "trailers without an end": CHUNKED + b"0\r\n" + b"a: b\r\n" * 20_000,
    "a thousand empty lines": b"\r\n" * 1000 + HEAD + b"\r\n",
    "ten thousand headers": HEAD + b"a: b\r\n" * 10_000 + b"\r\n",
    "a header of a megabyte": HEAD + b"a: " + b"b" * 2**20 + b"\r\n\r\n",
    "headers without an end": HEAD + b"a: b\r\n" * 50,
    "header without a name": HEAD + b": b\r\n\r\n",
    "header with a NUL": HEAD + b"a\x00: b\x00\r\n\r\n",
    "header over two lines": HEAD + b"a: b\r\n c\r\n\r\n",
    "space before the colon": HEAD + b"Content-Length : 14\r\n\r\n" + BODY,
    "address of a megabyte": b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\n\r\n",
    "address with bytes": b"GET /jobs/\x00\xff\xfe HTTP/1.1\r\n\r\n",
    "address of somewhere else": b"GET http://[::1 HTTP/1.1\r\n\r\n",
    "method with bytes": b"G\xffT / HTTP/1.1\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "version of the future": b"GET / HTTP/9.9\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("16030100a5010000a10303") + b"\x00" * 160,
    "bytes": bytes(range(256)) * 40,
    "nothing": b"",
}


@pytest.mark.parametrize("raw", WIRE.values(), ids=WIRE.keys())
def test_what_is_not_http_is_refused_or_closed(service: Service, raw: bytes) -> None:
    answer = send(service, raw, whole=False)
    assert answer is None or not is_bug(answer)


#: Hosts as raw bytes, and the resulting status.
HOSTS = {
    b"GET /jobs HTTP/1.1\r\nHost: LOCALHOST.:8000": 200,
    b"GET http://localhost:8000/jobs HTTP/1.1\r\nHost: localhost": 200,
    b"GET /jobs HTTP/1.1": 400,
    b"GET /jobs HTTP/1.1\r\nHost:": 400,
    b"GET /jobs HTTP/1.1\r\nHost: attacker.example": 400,
    b"GET /jobs HTTP/1.1\r\nHost: localhost\r\nHost: attacker.example": 400,
    b"GET http://attacker.example/jobs HTTP/1.1\r\nHost: localhost": 400,
    b"GET http://localhost/jobs HTTP/1.1\r\nHost: attacker.example": 400,
    b"GET /jobs HTTP/1.1\r\nHost: attacker.example\r\nX-Forwarded-Host: localhost": 400,
    b"GET /readyz HTTP/1.1\r\nHost: attacker.example": 200,
    b"DELETE /jobs/x HTTP/1.1\r\nHost: localhost\r\nOrigin: null": 403,
    b"DELETE /jobs/x HTTP/1.1\r\nHost: localhost": 404,
}


@pytest.mark.parametrize("head", HOSTS)
def test_only_trusted_hosts_and_sites_are_answered(service: Service, head: bytes) -> None:
    answer = send(service, head + b"\r\nConnection: close\r\n\r\n")
    assert answer is not None
    assert answer.status == HOSTS[head]


def test_callers_who_hang_up_within_their_bodies_leave_nothing(service: Service) -> None:
    connections = []
    for number in range(100):
        connection = connect(service)
        parts = (CHUNKED + b"E\r\n{", HEAD + b"Content-Length: 9999\r\n\r\n{", HEAD[:40])
        connection.sendall(parts[number % 3])
        connections.append(connection)
    # Other clients are served at the same time.
    assert requests.get(f"{service.url}/healthz", timeout=30).ok
    for number, connection in enumerate(connections):
        if number % 2:
            # Closed by a reset, like the connection of a killed client.
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.close()
    eventually(lambda: open_connections(service) == 0, 30)


def open_connections(service: Service) -> int:
    """Connections of clients that the API has open."""
    port = urlsplit(service.url).port
    processes = [psutil.Process(pid) for pid in family(service) if pid != os.getpid()]
    connections = [one for process in processes for one in process.net_connections("tcp")]
    return sum(one.laddr.port == port and one.status == "ESTABLISHED" for one in connections)
