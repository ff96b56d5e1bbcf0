"""The waiting time of a caller of OpenAI's API, and the detection of a hang-up."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Request
from werkzeug.test import EnvironBuilder

from api.dialects.openai.deadlines import hang_up, seconds_to_wait


def request(timeout: str | None = None, *, threads: bool = True, **environ: Any) -> Request:
    headers = {} if timeout is None else {"X-Stainless-Read-Timeout": timeout}
    builder = EnvironBuilder(headers=headers)
    return Request(builder.get_environ() | {"wsgi.multithread": threads} | environ)


@pytest.mark.parametrize(
    ("stated", "seconds"),
    [
        ("600", 590.0),
        ("600.0", 590.0),
        ("60", 57.0),
        ("5", 4.5),
        ("0.4", 0.2),
        ("100000", 600.0),
        (None, 300.0),
        ("", 300.0),
        ("None", 300.0),
        ("-1", 300.0),
        ("0", 300.0),
        ("nan", 300.0),
        ("inf", 300.0),
    ],
)
def test_the_answer_comes_before_the_caller_gives_up(stated: str | None, seconds: float) -> None:
    assert seconds_to_wait(request(stated)) == pytest.approx(seconds)


def test_a_server_of_one_request_at_a_time_is_not_held_for_long() -> None:
    assert seconds_to_wait(request("600", threads=False)) == 25


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("name", ["gunicorn.socket", "werkzeug.socket"])
def test_a_closed_connection_is_a_caller_who_is_gone(
    connection: tuple[socket.socket, socket.socket], name: str
) -> None:
    ours, theirs = connection
    ours.settimeout(7)
    gone = hang_up(request(**{name: ours}))
    assert not gone()
    theirs.sendall(b"GET /next")
    assert not gone()
    assert ours.gettimeout() == 7
    assert ours.recv(100) == b"GET /next"
    theirs.close()
    assert gone()


def test_where_the_server_shows_no_connection_nobody_is_gone() -> None:
    assert not hang_up(request())()
