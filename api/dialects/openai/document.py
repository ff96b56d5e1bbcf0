"""What `/v1` takes and answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Final

from api.dialects.openai import schemas
from api.openapi_parts import JsonObject, answer, header, parameter, ref, retry_after
from worker.openai.requests import EmbeddingsRequest

REQUESTS: Final = (EmbeddingsRequest,)
ANSWERS: Final = (
    schemas.EmbeddingList,
    schemas.Model,
    schemas.ModelList,
    schemas.ErrorDocument,
)

_ABOUT: Final = {
    400: "`malformed_body`, `untrusted_host`, `invalid_request`, `invalid_dimensions`, "
    "`invalid_prompt`, `max_tokens_per_request`, `token_ids_not_supported`, `cancelled`, or "
    "the code of the first text that failed; `param` names it.",
    401: "`unauthorized`",
    403: "`cross_site`",
    404: "`model_not_found`, `not_found`",
    408: "`request_timeout`",
    413: "`too_large`, `files_full`",
    415: "`unsupported_media_type`",
    429: "`rate_limit_exceeded`, `quota_exceeded`; the key's quotas are in the headers.",
    500: "`internal_error`, `time_limit`",
    503: "`no_worker`, `queue_full`, `results_full`, `redis_unavailable`, `not_in_time`, "
    "`storage_unavailable`",
}


def paths() -> JsonObject:
    """The operations by path and method."""
    return {
        "/v1/embeddings": {"post": _embeddings()},
        "/v1/models": {"get": _list_models()},
        "/v1/models/{id}": {"get": _read_model()},
    }


def errors(*statuses: int) -> JsonObject:
    """Answers in OpenAI's shape of an error, by status."""

    def error(status: int) -> JsonObject:
        headers = _headers() | (retry_after() if status in (429, 503) else {})
        return answer(_ABOUT[status], "ErrorDocument", headers=headers)

    return {str(status): error(status) for status in statuses}


def _embeddings() -> JsonObject:
    headers = _headers() | {"openai-model": header("The model that made the vectors.")}
    return {
        "summary": "Vectors of texts, as OpenAI's API gives them",
        "description": (
            "All or nothing: a text that fails fails the request. Equal requests under way share "
            "their work, and one whose caller hangs up is cancelled."
        ),
        "parameters": [
            parameter(
                "X-Stainless-Read-Timeout",
                "Seconds that the caller waits, as OpenAI's clients say; the answer comes before.",
                {"type": "string", "examples": ["600"]},
                place="header",
            )
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": ref("EmbeddingsRequest")},
        },
        "responses": {
            "200": answer("The vectors.", "EmbeddingList", headers=headers),
            **errors(400, 404, 413, 415, 500, 503),
        },
    }


def _list_models() -> JsonObject:
    return {
        "summary": "The models of the live workers, the default first",
        "responses": {
            "200": answer("The models.", "ModelList", headers=_headers()),
            **errors(503),
        },
    }


def _read_model() -> JsonObject:
    name = "The model's name, which may hold slashes."
    return {
        "summary": "One served model",
        "parameters": [parameter("id", name, {"type": "string"}, "path")],
        "responses": {
            "200": answer("The model.", "Model", headers=_headers()),
            **errors(404, 503),
        },
    }


def _headers() -> JsonObject:
    return {
        "x-request-id": header("The request's own, or a new one."),
        "openai-processing-ms": header("Milliseconds that the answer took.", "integer"),
    }
