"""Log records as lines of JSON, and the id of a request."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from api.request_ids import HEADER, request_id
from tests.api_stand import ApiStand, api_stand
from worker.metrics import logs


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """A logger set up like Celery's, then switched to JSON."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    logger = logging.getLogger("embedq.test")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    logs.use_json(logger)
    uncaught = logging.getLogger(logs.__name__)
    uncaught.addHandler(handler)
    yield logger
    uncaught.removeHandler(handler)
    logger.removeHandler(handler)
    logging.captureWarnings(capture=False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_line(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.warning("Job %s\nis odd", "one", extra={"job_id": "one", "other": "not shown"})
    (line,) = lines(stream)
    assert line["message"] == "Job one\nis odd"
    assert (line["level"], line["logger"], line["job_id"]) == ("warning", "embedq.test", "one")
    assert line["time"].endswith("+00:00")
    assert "not shown" not in stream.getvalue()


def test_celerys_own_records_show_the_id_and_no_arguments(
    logger: logging.Logger, stream: io.StringIO
) -> None:
    data = {"id": "one", "name": "embedq.embed", "args": "SECRET"}
    logger.info("Task %(name)s[%(id)s] received", data, extra={"data": data})
    (line,) = lines(stream)
    assert line["job_id"] == "one"
    assert "SECRET" not in stream.getvalue()


def test_an_exception_comes_with_its_type_and_traceback(
    logger: logging.Logger, stream: io.StringIO
) -> None:
    try:
        raise KeyError("k")
    except KeyError:
        logger.exception("It failed")
    (line,) = lines(stream)
    assert line["error"] == "KeyError"
    assert "test_an_exception" in line["traceback"]


def test_a_name_without_utf8_form_is_logged_all_the_same(
    logger: logging.Logger, stream: io.StringIO
) -> None:
    logger.warning("model %s", "lone \ud800 surrogate")
    (line,) = lines(stream)
    assert line["message"] == "model lone \\ud800 surrogate"
    assert (line["level"], type(line["process"])) == ("warning", int)


def test_uncaught_errors_of_any_thread_are_lines_too(
    logger: logging.Logger, stream: io.StringIO
) -> None:
    def run() -> None:
        raise ValueError("in a thread")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    try:
        run()
    except ValueError:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    assert [line["error"] for line in lines(stream)] == ["ValueError"] * 2


@pytest.fixture
def api(redis_url: str) -> Iterator[ApiStand]:
    with api_stand(redis_url) as stand:
        yield stand


@pytest.mark.parametrize("given", ["a-b.c_1:2/3=", "x" * 128])
def test_a_sane_request_id_is_kept(api: ApiStand, given: str) -> None:
    for path in ("/healthz", "/nothing"):
        assert api.client.get(path, headers={HEADER: given}).headers[HEADER] == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "two words", "né", 'q"', "a\tb"])
def test_any_other_is_replaced(given: str | None) -> None:
    made = request_id(given)
    assert made != given
    assert re.fullmatch("req_[0-9a-f]{32}", made)
