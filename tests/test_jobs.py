"""Valid inputs of callers, and the errors of invalid ones."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
from celery import states

from worker.contract import estimates
from worker.contract.errors import InvalidJob
from worker.contract.jobs import (
    DEFAULT_OPTIONS,
    MAX_TEXTS,
    JobOptions,
    Status,
    parse_body,
    parse_call,
    parse_options,
    resolve,
)
from worker.contract.models import UNLIMITED, ModelInfo, prompt_text

SECRET = "a text that nobody else may read"


def model(name: str = "first", **changes: Any) -> ModelInfo:
    facts: dict[str, Any] = {
        "dimensions": 384,
        "max_tokens": 256,
        "device": "cpu",
        "backend": "torch",
        "dtype": "float32",
        "packed": True,
        "batch_tokens": 1024,
    }
    return ModelInfo(name, **(facts | changes))


def fault(call: Callable[[], object]) -> InvalidJob:
    """Return the error that a call raises; no printed form of it shows a text."""
    with pytest.raises(InvalidJob) as caught:
        call()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert len(caught.value.message) < 600
    return caught.value


# -- the call of the task -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "texts"),
    [
        (["one"], {}, ["one"]),
        ([["one", "two"]], {}, ["one", "two"]),
        ([("one", "two")], {}, ["one", "two"]),
        ([], {"input": "one"}, ["one"]),
        ([["one", 2, None, ["three"]]], {}, ["one", 2, None, ["three"]]),
        ([["x"] * MAX_TEXTS], {}, ["x"] * MAX_TEXTS),
        ([""], {}, [""]),
    ],
)
def test_a_call_is_one_text_or_a_list_of_them(
    args: list[Any], kwargs: dict[str, Any], texts: list[Any]
) -> None:
    assert parse_call(args, kwargs) == (texts, DEFAULT_OPTIONS)


def test_options_of_a_call_have_the_contracts_defaults() -> None:
    _, options = parse_call(["a"], {"dimensions": 128, "normalize": False})
    assert options == JobOptions(dimensions=128, normalize=False)
    assert DEFAULT_OPTIONS.model_dump() == {
        "model": None,
        "prompt_name": None,
        "prompt": None,
        "dimensions": None,
        "normalize": True,
        "truncate": True,
        "long": "cut",
        "encoding_format": "float",
        "token_counts": False,
    }


@pytest.mark.parametrize(
    ("args", "kwargs", "field"),
    [
        ([], {}, "input"),
        ([[]], {}, "input"),
        ([["x"] * (MAX_TEXTS + 1)], {}, "input"),
        ([7], {}, "input"),
        ([None], {}, "input"),
        ([{SECRET: 1}], {}, "input"),
        ([SECRET, SECRET], {}, "input"),
        ([SECRET], {"input": SECRET}, "input"),
        ([SECRET], {"dimensions": 0}, "dimensions"),
        ([SECRET], {"dimensions": "128"}, "dimensions"),
        ([SECRET], {"dimensions": True}, "dimensions"),
        ([SECRET], {"dimensions": 1.0}, "dimensions"),
        ([SECRET], {"normalize": "yes"}, "normalize"),
        ([SECRET], {"truncate": 1}, "truncate"),
        ([SECRET], {"long": SECRET}, "long"),
        ([SECRET], {"long": True}, "long"),
        ([SECRET], {"encoding_format": "hex"}, "encoding_format"),
        ([SECRET], {"prompt": [SECRET]}, "prompt"),
        ([SECRET], {"prompt_name": {SECRET: 1}}, "prompt_name"),
        ([SECRET], {"model": 3}, "model"),
        ([SECRET], {"model": "m" * 10_000}, "model"),
        ([SECRET], {"truncat": True}, "truncat"),
        ([SECRET], {"x" * 10_000: True}, "x" * 64),
    ],
)
def test_what_is_wrong_with_a_call_is_named(
    args: list[Any], kwargs: dict[str, Any], field: str
) -> None:
    error = fault(lambda: parse_call(args, kwargs))
    assert (error.code, error.field) == ("invalid_request", field)


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    message = fault(lambda: parse_options({"normalise": True})).message
    assert message.startswith("normalise: ")
    assert all(name in message for name in JobOptions.model_fields)


def test_a_misspelled_input_is_named_beside_the_right_name() -> None:
    for call in (lambda: parse_body({"inputs": [SECRET]}), lambda: parse_call([], {"inputs": 1})):
        error = fault(call)
        assert (error.code, error.field) == ("invalid_request", "inputs")
        assert error.message.startswith("inputs: there is no such option; known are model, ")
        assert error.message.endswith(", input")


# -- the body of a request ------------------------------------------------------------------


def test_a_body_holds_the_input_and_the_options() -> None:
    body = {"input": ["a", "b"], "encoding_format": "base64"}
    assert parse_body(body) == (["a", "b"], JobOptions(encoding_format="base64"))
    assert parse_body({"input": "a"}) == (["a"], DEFAULT_OPTIONS)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (None, None),
        ([SECRET], None),
        (SECRET, None),
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [SECRET, 7]}, "input[1]"),
        ({"input": [SECRET, SECRET, [SECRET]]}, "input[2]"),
        ({"input": SECRET, "texts": [SECRET]}, "texts"),
        ({"input": SECRET, "prompt": [SECRET]}, "prompt"),
    ],
)
def test_what_is_wrong_with_a_body_is_named(body: Any, field: str | None) -> None:
    assert fault(lambda: parse_body(body)).field == field


# -- the model ------------------------------------------------------------------------------

MATRYOSHKA = model("second", dimensions=768, matryoshka=(512, 256))
PROMPTED = model("third", prompts={"query": "query: ", "none": ""}, default_prompt_name="query")
STATIC = model("static", max_tokens=UNLIMITED)
SERVED = {info.name: info for info in (model(), MATRYOSHKA, PROMPTED, STATIC)}


def test_the_first_model_is_the_default() -> None:
    assert resolve(JobOptions(), SERVED).name == "first"
    assert resolve(JobOptions(model="third"), SERVED) is PROMPTED


@pytest.mark.parametrize("size", [None, 768, 512, 256])
def test_a_matryoshka_model_has_the_sizes_it_was_trained_for(size: int | None) -> None:
    assert resolve(JobOptions(model="second", dimensions=size), SERVED) is MATRYOSHKA


@pytest.mark.parametrize(
    ("options", "code", "field", "says"),
    [
        ({"model": "fourth"}, "model_not_found", "model", "first, second, third, static"),
        ({"dimensions": 128}, "invalid_dimensions", "dimensions", "it has: 384"),
        (
            {"model": "second", "dimensions": 384},
            "invalid_dimensions",
            "dimensions",
            "it has: 768, 512, 256",
        ),
        ({"prompt_name": "query"}, "invalid_prompt", "prompt_name", "it has: none"),
        (
            {"model": "third", "prompt_name": "passage"},
            "invalid_prompt",
            "prompt_name",
            "it has: query, none",
        ),
        ({"prompt": SECRET, "prompt_name": "query"}, "invalid_prompt", "prompt", "exclude"),
        ({"prompt": SECRET * 2**20}, "invalid_prompt", "prompt", "takes at most 4,096"),
        (
            {"model": "static", "prompt": "p" * 131_073},
            "invalid_prompt",
            "prompt",
            "prompt has 131,073 characters; static takes at most 131,072",
        ),
    ],
)
def test_what_the_model_cannot_do_is_named(
    options: dict[str, Any], code: str, field: str, says: str
) -> None:
    error = fault(lambda: resolve(parse_options(options), SERVED))
    assert (error.code, error.field) == (code, field)
    assert says in error.message


@pytest.mark.parametrize(
    ("options", "info", "prompt"),
    [
        ({}, SERVED["first"], None),
        ({"prompt": "as is: "}, SERVED["first"], "as is: "),
        ({}, PROMPTED, "query: "),
        ({"prompt_name": "none"}, PROMPTED, ""),
        ({"prompt": ""}, PROMPTED, ""),
        ({"prompt": "other: "}, PROMPTED, "other: "),
    ],
)
def test_the_prompt_is_chosen_as_the_library_does(
    options: dict[str, Any], info: ModelInfo, prompt: str | None
) -> None:
    assert prompt_text(parse_options(options), info) == prompt


# -- states ---------------------------------------------------------------------------------


def test_states_of_celery_are_states_of_jobs() -> None:
    found = {state: Status.of_celery(state).value for state in states.ALL_STATES}
    assert found == {
        "PENDING": "queued",
        "RECEIVED": "queued",
        "STARTED": "running",
        "RETRY": "running",
        "SUCCESS": "succeeded",
        "FAILURE": "failed",
        "REVOKED": "cancelled",
    }
    assert {status for status in Status if status.ended} == {
        Status.SUCCEEDED,
        Status.FAILED,
        Status.CANCELLED,
    }


# -- estimates ------------------------------------------------------------------------------


def test_estimates_add_up_and_stop_at_the_models_limit() -> None:
    texts = ["", "four", "x" * 400, "x" * 10**6, 7, None]
    each = [estimates.tokens_of(text, 256) for text in texts]
    assert each == [2, 3, 102, 256, 0, 0]
    assert estimates.tokens(texts, 256) == sum(each)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("word " * 40, 40, 60),
        # One token each in most vocabularies.
        ("漢字かな交じり文" * 10, 70, 110),
        ("🙂" * 50, 50, 80),
        ("Grüße aus Köln, schöne Straße " * 5, 30, 70),
        ("\ud800" * 10, 2, 20),
    ],
)
def test_dense_scripts_are_estimated_by_their_bytes(text: str, least: int, most: int) -> None:
    assert least <= estimates.tokens_of(text) <= most


def test_a_prompt_costs_as_much_before_each_text_as_the_model_reads_of_it() -> None:
    texts = ["word"] * 64
    options = JobOptions(prompt="query: " * 40)
    alone = estimates.of_job(texts, JobOptions(), model())
    together = estimates.of_job(texts, options, model())
    assert alone + 64 * 60 <= together <= alone + 64 * 80
    # Never more than the model's limit.
    long = JobOptions(prompt="query: " * 10**4)
    assert estimates.of_job(texts, long, model()) == 64 * model().max_tokens
    # Windows have a prompt each.
    whole = JobOptions(prompt="query: " * 40, long="mean")
    text = "word " * 1000
    windows = estimates.of_job([text], whole, model()) - estimates.of_job(
        [text], JobOptions(long="mean"), model()
    )
    assert windows >= 5 * 60


def test_a_blob_is_expected_to_be_smaller_than_floats() -> None:
    floats, blob = (estimates.result_bytes(100, 384, base64=form) for form in (False, True))
    assert 38_400 * 5 < blob < floats < 38_400 * 13
