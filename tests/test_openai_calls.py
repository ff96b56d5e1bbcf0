"""From a body of OpenAI's embeddings API to texts and options; token ids back to text."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from worker.contract.errors import InvalidJob, SettingsError
from worker.contract.jobs import JobOptions
from worker.openai.calls import EmbeddingsCall, parse_call
from worker.openai.requests import MOST_INPUTS, MOST_TOKENS
from worker.openai.token_table import TokenTable

PIECES = [b"hello", b" world", b"\xf0\x9f\x98", b"\x80", b"!"]


@pytest.fixture
def table(tmp_path: Path) -> TokenTable:
    file = tmp_path / "small.tiktoken"
    lines = [base64.b64encode(piece) + b" %d" % rank for rank, piece in enumerate(PIECES)]
    file.write_bytes(b"\n".join(lines) + b"\n")
    return TokenTable.load(file)


def call(input: Any, table: TokenTable | None = None, **members: Any) -> EmbeddingsCall:
    return parse_call({"model": "m", "input": input, **members}, table)


@pytest.mark.parametrize(
    ("input", "texts"),
    [
        ("one", ["one"]),
        ("", [""]),
        (["one", ""], ["one", ""]),
        ([[], "one"], ["", "one"]),
        (["\ud800"], ["\ud800"]),
    ],
)
def test_texts_are_taken_as_they_are_empty_ones_too(input: Any, texts: list[str]) -> None:
    assert call(input).texts == texts


@pytest.mark.parametrize(
    ("input", "texts"),
    [
        ([0, 1], ["hello world"]),
        ([[0, 1], [4]], ["hello world", "!"]),
        ([[0, 1], "", "plain"], ["hello world", "", "plain"]),
        ([[2, 3]], ["😀"]),
        ([[0, 2], [3, 4]], ["hello\ufffd", "\ufffd!"]),
    ],
)
def test_token_ids_are_decoded_beside_texts(
    table: TokenTable, input: Any, texts: list[str]
) -> None:
    assert call(input, table).texts == texts


def test_without_a_table_token_ids_are_refused_with_the_clients_switch() -> None:
    for input in ([1, 2], [[1, 2], ""], ["", [1]]):
        with pytest.raises(InvalidJob, match="check_embedding_ctx_length=False") as caught:
            call(input)
        assert (caught.value.code, caught.value.field) == ("token_ids_not_supported", "input")


@pytest.mark.parametrize(
    ("input", "field"),
    [
        (None, "input"),
        ({}, "input"),
        (3, "input"),
        ([], "input"),
        ([True], "input[0]"),
        (["a", 1], "input[1]"),
        ([1.5], "input[0]"),
        ([[0], None], "input[1]"),
        ([0, "a"], "input[1]"),
        ([0, True], "input[1]"),
        ([[0], [0, "a"]], "input[1][1]"),
        ([0, 99], "input"),
        ([[0], [-1]], "input[1]"),
        (["a"] * (MOST_INPUTS + 1), "input"),
    ],
)
def test_a_wrong_input_is_named_by_its_index(table: TokenTable, input: Any, field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        call(input, table)
    assert caught.value.field == field
    assert field in caught.value.message


def test_the_most_texts_are_taken() -> None:
    assert len(call(["a"] * MOST_INPUTS).texts) == MOST_INPUTS


def test_more_tokens_than_a_request_may_have_are_refused() -> None:
    with pytest.raises(InvalidJob, match="300,000") as caught:
        call(["word " * MOST_TOKENS])
    assert (caught.value.code, caught.value.field) == ("max_tokens_per_request", "input")


def test_options_are_those_of_the_job_whose_own_form_is_base64() -> None:
    mine = {"prompt_name": "query", "truncate": False, "normalize": False, "long": "mean"}
    found = call("a", dimensions=2, user="me", **mine)
    assert found.options == JobOptions(
        model="m",
        prompt_name="query",
        dimensions=2,
        truncate=False,
        long="mean",
        normalize=False,
        encoding_format="base64",
    )
    assert found.encoding_format == "float"
    assert call("a", encoding_format="base64").encoding_format == "base64"


def test_null_is_the_default_and_unknown_members_are_ignored() -> None:
    nothing = dict.fromkeys(
        ("encoding_format", "dimensions", "user", "prompt_name", "truncate", "normalize", "long")
    )
    assert call("a", **nothing, colour="red") == call("a")


def test_input_type_is_another_word_for_prompt_name() -> None:
    assert call("a", input_type="query").options.prompt_name == "query"
    assert call("a", input_type="query", prompt_name="query") == call("a", prompt_name="query")
    with pytest.raises(InvalidJob) as caught:
        call("a", input_type="query", prompt_name="document")
    assert caught.value.field == "input_type"


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("model", None),
        ("model", 3),
        ("model", "m" * 257),
        ("encoding_format", "hex"),
        ("dimensions", 0),
        ("dimensions", "4"),
        ("dimensions", True),
        ("truncate", "END"),
        ("long", "sum"),
        ("normalize", 1),
        ("user", 3),
    ],
)
def test_a_wrong_option_is_named_and_no_text_with_it(member: str, value: Any) -> None:
    with pytest.raises(InvalidJob) as caught:
        call("secret", **{member: value})
    assert caught.value.field == member
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "holds no tokens"), (b"no table", "no .tiktoken file"), (b"aGk= x", "no .tiktoken")],
)
def test_a_file_that_is_no_table_stops_the_api(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=f"EMBEDQ_TOKEN_TABLE=.*{reason}"):
        TokenTable.load(file)


def test_a_table_that_is_not_there_stops_the_api(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        TokenTable.load(tmp_path / "none")
