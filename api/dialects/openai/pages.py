"""Lists as OpenAI's clients page through them: `after` an id, `limit` of one page, `has_more`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from flask import Request
from pydantic import BaseModel

from api.errors import Problem
from api.operations import JsonObject, limit_parameter, parameter


class Listed(Protocol):
    """Something that is listed."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Listed)


def document(
    found: Sequence[T], following: str | None, show: Callable[[T], BaseModel]
) -> dict[str, Any]:
    """One page as the body of an answer; `following` is the `after` of the next one, if any.

    A page that has to stop before it found anything names that id as its last.
    """
    return {
        "object": "list",
        "data": [show(one).model_dump() for one in found],
        "first_id": found[0].id if found else None,
        "last_id": found[-1].id if found else following,
        "has_more": following is not None,
    }


def parameters(default: int, most: int) -> list[JsonObject]:
    """The parameters of a list, for the OpenAPI document."""
    return [
        limit_parameter("Entries of one page.", default, most),
        parameter("after", "An id; the page begins after it.", {"type": "string"}),
    ]


def newest_first(request: Request) -> bool:
    """`?order=desc`, the default, or `asc`. Raises Problem."""
    value = request.args.get("order", "desc")
    if value not in ("asc", "desc"):
        raise Problem(
            "invalid_request", f"order is {value!r}; asc and desc are allowed", field="order"
        )
    return value == "desc"


def unknown_after(kind: str) -> Problem:
    """The page is to begin after something that is not in the list."""
    return Problem("invalid_request", f"after is no {kind} of this list", field="after")
