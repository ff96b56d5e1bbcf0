"""Files of requests: read line by line, checked as a whole."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import pytest

from tests.bulk.stand import jsonl, line
from worker.batches import lines
from worker.batches.lines import Malformed, RequestLine, check, parse, read_lines
from worker.store.openai_batch import ENDPOINT


def findings(*lines: dict[str, Any] | bytes) -> lines.Findings:
    data = b"".join(one if isinstance(one, bytes) else jsonl([one]) for one in lines)
    return check(read_lines(io.BytesIO(data), 1000), ENDPOINT)


@pytest.mark.parametrize("piece", [1, 3, 7, 1000])
def test_lines_are_the_same_whatever_the_pieces_they_are_read_in(
    monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(lines, "CHUNK", piece)
    data = b"\xef\xbb\xbffirst\n\n  \r\nfourth\r\nlast"
    found = list(read_lines(io.BytesIO(data), 100))
    assert [(one.number, one.raw.strip()) for one in found] == [
        (1, b"first"),
        (4, b"fourth"),
        (5, b"last"),
    ]
    assert found[-1].end == len(data)
    for before, after in pairwise(found):
        rest = read_lines(io.BytesIO(data), 100, offset=before.end, number=before.number)
        assert next(rest) == after


def test_a_file_that_is_right_has_its_requests_counted_and_its_model_found() -> None:
    found = findings(line("a"), b"\n", line("b"), line("c"))
    assert (found.total, found.model, found.faults) == (3, "tiny", [])


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b"{\n", "invalid_json_line", None),
        (b"\xff\xfe\n", "invalid_json_line", None),
        (b"[" * 900 + b"\n", "invalid_json_line", None),
        (b"3\n", "invalid_json_line", None),
        ({"custom_id": "x"}, "missing_required_parameter", "method"),
        (line("x") | {"custom_id": 3}, "invalid_json_line", "custom_id"),
        (line("x") | {"custom_id": ""}, "invalid_json_line", "custom_id"),
        (line("x") | {"custom_id": "x" * 513}, "invalid_json_line", "custom_id"),
        (
            b'{"custom_id":"\\ud800","method":"POST","url":"/v1/embeddings","body":{}}\n',
            "invalid_json_line",
            "custom_id",
        ),
        (line("x") | {"method": "GET"}, "invalid_method", "method"),
        (line("x") | {"url": "/v1/chat/completions"}, "url_mismatch", "url"),
        (line("x") | {"body": "text"}, "invalid_json_line", "body"),
        (line("a"), "duplicate_custom_id", "custom_id"),
        (line("x", model="another"), "model_mismatch", "body.model"),
        (line("x", input="y" * 1000), "invalid_json_line", None),
    ],
)
def test_a_line_of_the_wrong_form_is_named_with_its_number(
    bad: dict[str, Any] | bytes, code: str, param: str | None
) -> None:
    [fault] = findings(line("a"), bad).faults
    assert (fault.code, fault.line, fault.param) == (code, 2, param)


def test_every_bad_line_is_named_up_to_a_hundred() -> None:
    assert [fault.line for fault in findings(line("a"), b"x\n", line("b"), b"y\n").faults] == [2, 4]
    assert len(findings(*[b"x\n"] * 150).faults) == 100


def test_a_file_without_requests_is_empty() -> None:
    for data in (b"", b"\n \n"):
        [fault] = findings(data).faults
        assert (fault.code, fault.line) == ("empty_file", None)


def test_a_text_with_a_lone_surrogate_is_left_to_the_worker() -> None:
    raw = b'{"custom_id":"x","method":"POST","url":"/v1/embeddings","body":{"input":"\\ud800"}}'
    assert parse(raw, ENDPOINT).body == {"input": "\ud800"}


def test_a_line_past_its_bound_is_not_read_to_its_end() -> None:
    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            return b"x" * size

    with pytest.raises(Malformed) as caught:
        list(read_lines(Endless(), 10_000_000))
    assert caught.value.fault.line == 1


def test_lines_come_as_they_are_read() -> None:
    assert next(read_lines(io.BytesIO(b"a\nb\n"), 10)) == RequestLine(1, 2, b"a")
