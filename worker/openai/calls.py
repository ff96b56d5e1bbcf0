"""A body of `POST /v1/embeddings`, checked: its texts and options. Pure."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from pydantic import ValidationError

from worker.contract import estimates
from worker.contract.errors import InvalidJob
from worker.contract.jobs import EncodingFormat, JobOptions, invalid_job
from worker.openai.requests import MOST_INPUTS, MOST_TOKENS, EmbeddingsRequest
from worker.openai.token_table import TokenTable


class EmbeddingsCall(NamedTuple):
    """The texts and options of a request.

    The job always uses base64, independent of `encoding_format`: it is stored and read faster.
    """

    texts: list[str]
    options: JobOptions
    encoding_format: EncodingFormat


def parse_call(body: Any, table: TokenTable | None) -> EmbeddingsCall:
    """A request's texts and options; `table` decodes token ids, which are refused without one.

    Raises InvalidJob naming the field.
    """
    if not isinstance(body, dict):
        raise InvalidJob("the body is not a JSON object")
    try:
        request = EmbeddingsRequest.model_validate(body)
    except ValidationError as error:
        raise invalid_job(error) from error
    texts = _texts(request.input, table)
    tokens = estimates.tokens(texts, sys.maxsize)
    if tokens > MOST_TOKENS:
        raise InvalidJob(
            f"input holds about {tokens:,} tokens; at most {MOST_TOKENS:,} a request are allowed",
            field="input",
            code="max_tokens_per_request",
        )
    options = JobOptions(
        model=request.model,
        prompt_name=_prompt_name(request),
        dimensions=request.dimensions,
        normalize=request.normalize is not False,
        truncate=request.truncate is not False,
        long=request.long or "cut",
        encoding_format="base64",
    )
    return EmbeddingsCall(texts, options, request.encoding_format or "float")


def _prompt_name(request: EmbeddingsRequest) -> str | None:
    if None not in (request.prompt_name, request.input_type) and (
        request.prompt_name != request.input_type
    ):
        raise InvalidJob(
            "prompt_name and input_type are the same option, with two values here",
            field="input_type",
        )
    return request.prompt_name or request.input_type


def _texts(value: Any, table: TokenTable | None) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise InvalidJob(
            f"input is a {type(value).__name__}, not a string, a list of strings, or token ids",
            field="input",
        )
    if not value:
        raise InvalidJob("input is empty", field="input")
    if type(value[0]) is int:
        return [_decode(value, "input", table)]
    if len(value) > MOST_INPUTS:
        raise InvalidJob(
            f"input holds {len(value):,} texts; 1 to {MOST_INPUTS:,} are allowed", field="input"
        )
    return [_text(item, f"input[{index}]", table) for index, item in enumerate(value)]


def _text(item: Any, field: str, table: TokenTable | None) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, list):
        return _decode(item, field, table) if item else ""
    raise InvalidJob(
        f"{field} is a {type(item).__name__}, not a string or a list of token ids", field=field
    )


def _decode(ids: list[Any], field: str, table: TokenTable | None) -> str:
    if table is None:
        raise InvalidJob(
            "input holds token ids, which are of another model's vocabulary; send strings "
            "(LangChain: check_embedding_ctx_length=False), or have the server decode them "
            "(EMBEDQ_TOKEN_TABLE)",
            field="input",
            code="token_ids_not_supported",
        )
    for position, one in enumerate(ids):
        if type(one) is not int:
            raise InvalidJob(
                f"{field}[{position}] is a {type(one).__name__}, not a token id",
                field=f"{field}[{position}]",
            )
    try:
        return table.decode(ids)
    except KeyError as error:
        raise InvalidJob(
            f"{field} holds {error.args[0]}, which is no token id of the server's table",
            field=field,
        ) from error
