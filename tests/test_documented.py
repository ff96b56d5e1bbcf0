"""The check of answers against the OpenAPI document finds every kind of deviation."""

from __future__ import annotations

import orjson
import pytest

from tests.documented import surprise

PROBLEM = {"type": "about:blank", "title": "t", "status": 404, "detail": "d", "code": "not_found"}
PROBLEM_TYPE = "application/problem+json"


def test_an_answer_as_documented_is_no_surprise() -> None:
    body = orjson.dumps(PROBLEM)
    assert surprise("GET", "/jobs/{id}", 404, PROBLEM_TYPE, body) is None
    assert surprise("HEAD", "/jobs/{id}", 404, PROBLEM_TYPE, b"") is None


@pytest.mark.parametrize(
    ("path", "status", "mimetype", "body", "words"),
    [
        ("/nothing", 200, PROBLEM_TYPE, PROBLEM, "in no operation"),
        ("/jobs/{id}", 418, PROBLEM_TYPE, PROBLEM, "in no operation"),
        ("/jobs/{id}", 404, "text/html", PROBLEM, "documented are"),
        ("/jobs/{id}", 404, PROBLEM_TYPE, PROBLEM | {"code": 7}, "code: 7 is not"),
        ("/jobs/{id}", 404, PROBLEM_TYPE, {}, "is a required property"),
    ],
)
def test_any_other_answer_is(
    path: str, status: int, mimetype: str, body: object, words: str
) -> None:
    found = surprise("GET", path, status, mimetype, orjson.dumps(body))
    assert found is not None
    assert words in found
