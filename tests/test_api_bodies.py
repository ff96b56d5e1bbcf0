"""Request bodies: bounded before they cost memory, inflated in steps, parsed strictly."""

from __future__ import annotations

import gzip
import io
import tracemalloc
from collections.abc import Iterator

import orjson
import pytest
from flask import Request
from werkzeug.test import EnvironBuilder

from api.errors import Problem
from api.requests import parse_json, read_body
from tests.api_stand import ApiStand, api_stand, problem

LIMIT = 10_000
JSON = "application/json"


@pytest.fixture
def api(redis_url: str) -> Iterator[ApiStand]:
    with api_stand(redis_url, max_job_bytes=LIMIT) as stand:
        yield stand


class Endless(io.RawIOBase):
    """A stream without an end that counts the bytes read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        self.count += size
        return (self._data * (size // len(self._data) + 1))[:size]


def request(stream: io.IOBase, **headers: str) -> Request:
    """A request with a body of unstated length, as given by servers for chunked ones."""
    environ = EnvironBuilder(method="POST", headers=headers).get_environ()
    environ["wsgi.input"] = stream
    environ["wsgi.input_terminated"] = True
    return Request(environ)


def test_a_body_at_the_limit_is_taken_and_one_past_it_is_413(api: ApiStand) -> None:
    padding = b" " * (LIMIT - len(b'{"input": "a"}'))
    exact = b'{"input": "a"}' + padding
    assert api.client.post("/jobs", data=exact, content_type=JSON).status_code == 202
    response = api.client.post("/jobs", data=exact + b" ", content_type=JSON)
    assert response.status_code == 413
    assert problem(response)["code"] == "too_large"


def test_a_body_of_unstated_length_is_read_no_further_than_the_limit() -> None:
    stream = Endless(b"x")
    with pytest.raises(Problem) as caught:
        read_body(request(stream), LIMIT)
    assert caught.value.code == "too_large"
    assert stream.count <= LIMIT + 2 * 64 * 1024


def test_a_gzip_body_is_inflated(api: ApiStand) -> None:
    body = gzip.compress(orjson.dumps({"input": ["a", "b"]}))
    response = api.client.post(
        "/jobs", data=body, content_type=JSON, headers={"Content-Encoding": "gzip"}
    )
    assert response.status_code == 202
    assert response.get_json()["progress"]["total"] == 2


def test_gzip_members_may_follow_each_other() -> None:
    body = gzip.compress(b'{"input":') + gzip.compress(b' "a"}')
    stream = io.BytesIO(body)
    assert read_body(request(stream, **{"Content-Encoding": "gzip"}), LIMIT) == b'{"input": "a"}'


def test_gzip_members_are_counted_for_empty_ones_take_long_and_give_nothing() -> None:
    body = gzip.compress(b"") * 1100 + gzip.compress(b"{}")
    with pytest.raises(Problem) as caught:
        read_body(request(io.BytesIO(body), **{"Content-Encoding": "gzip"}), 2**20)
    assert caught.value.code == "malformed_body"


@pytest.mark.slow
def test_a_gzip_bomb_is_413_and_never_unfolds() -> None:
    limit = 2**20
    bomb = gzip.compress(bytes(500 * 2**20), compresslevel=9)
    assert len(bomb) < limit
    incoming = request(io.BytesIO(bomb), **{"Content-Encoding": "gzip"})
    tracemalloc.start()
    try:
        with pytest.raises(Problem) as caught:
            read_body(incoming, limit)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.code == "too_large"
    assert peak < 4 * limit


@pytest.mark.parametrize(
    "body",
    [
        b"no gzip",
        gzip.compress(b'{"input": "a"}', mtime=0)[:-9],
        b"",
        gzip.compress(b"{}", mtime=0) + b"junk",
    ],
    ids=["no gzip", "cut", "nothing", "more"],
)
def test_broken_gzip_is_400(api: ApiStand, body: bytes) -> None:
    response = api.client.post(
        "/jobs", data=body, content_type=JSON, headers={"Content-Encoding": "gzip"}
    )
    assert response.status_code == 400
    assert problem(response)["code"] == "malformed_body"


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip"])
def test_another_encoding_is_415_and_says_which_is_taken(api: ApiStand, encoding: str) -> None:
    response = api.client.post(
        "/jobs", data=b"{}", content_type=JSON, headers={"Content-Encoding": encoding}
    )
    assert response.status_code == 415
    assert problem(response)["code"] == "unsupported_media_type"
    assert response.headers["Accept-Encoding"] == "gzip"


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16"],
)
def test_another_content_type_is_415(api: ApiStand, content_type: str) -> None:
    response = api.client.post("/jobs", data=b'{"input": "a"}', content_type=content_type)
    assert response.status_code == 415
    assert problem(response)["code"] == "unsupported_media_type"


def test_json_in_utf_8_may_say_so(api: ApiStand) -> None:
    response = api.client.post(
        "/jobs", data='{"input": "é"}'.encode(), content_type="application/json; charset=UTF-8"
    )
    assert response.status_code == 202


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"input": "a"} x',
        b"\xff\xfe",
        b'"\xed\xa0\x80"',
        b'{"input": NaN}',
        b'{"input": "\\ud800", "dimensions": NaN}',
        b'{"input": "\\ud800", "dimensions": -Infinity}',
        b"[" * 5_000,
        b'["\\ud800", ' + b"[" * 100_000,
        b'["\\ud800", ' + b"9" * 9_000 + b"]",
    ],
)
def test_what_is_not_json_is_400(body: bytes) -> None:
    with pytest.raises(Problem) as caught:
        parse_json(body)
    assert caught.value.code == "malformed_body"
    assert caught.value.status == 400


def test_a_lone_surrogate_is_taken_to_fail_alone_later(api: ApiStand) -> None:
    body = b'{"input": ["fine", "\\ud800"]}'
    response = api.client.post("/jobs", data=body, content_type=JSON)
    assert response.status_code == 202
    (message,) = api.messages()
    assert "\\ud800" in message["body"]
