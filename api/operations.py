"""The registry of routes: each declares its operation for the OpenAPI document at its function.

The document, the check of API keys and the check of hosts derive from these declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from flask import Flask
from pydantic import BaseModel

from api.errors import MEDIA_TYPE, STATUS_OF, ProblemDocument

JsonObject = dict[str, Any]
View = Callable[..., Any]
AnyView = TypeVar("AnyView", bound=View)


class Answer(NamedTuple):
    """One response of an operation; `content` are its media types other than the model's."""

    about: str
    model: type[BaseModel] | None = None
    headers: Mapping[str, JsonObject] = {}
    media: str = "application/json"
    content: Mapping[str, JsonObject] = {}


@dataclass(frozen=True)
class OperationGroup:
    """Operations under one heading of the document, with the format of their errors."""

    name: str
    #: The document of an error, by its HTTP status.
    error: Callable[[int], Answer]


@dataclass(frozen=True)
class Operation:
    """A route in the OpenAPI document; its summary is the first line of the docstring."""

    group: OperationGroup
    answers: Mapping[int, Answer]
    #: HTTP statuses of its errors, in addition to those that follow from the flags.
    errors: Sequence[int] = ()
    description: str = ""
    parameters: Sequence[JsonObject] = ()
    #: A JSON body, or the content of another one by media type.
    body: type[BaseModel] | JsonObject | None = None
    #: Bodies that work as they stand, by name; a test sends them.
    examples: JsonObject = field(default_factory=dict)
    #: Whether it needs no API key.
    public: bool = False
    #: Whether it answers under any host name: probes and scrapers use any, and read no jobs.
    any_host: bool = False
    #: Whether it counts against the rates of an API key.
    rated: bool = False
    #: Whether the document leaves it out.
    hidden: bool = False

    def __call__(self, view: AnyView) -> AnyView:
        """Declare a function as this operation: a decorator below the route's."""
        _operations[view] = self
        return view


#: By function. Modules add theirs when they are imported.
_operations: Final[dict[View, Operation]] = {}


def operation_of(app: Flask, endpoint: str | None) -> Operation | None:
    """Return the declaration of an endpoint, or None."""
    return None if endpoint is None else _operations.get(app.view_functions[endpoint])


# -- parts of a declaration -----------------------------------------------------------------


def parameter(name: str, about: str, schema: JsonObject, place: str = "query") -> JsonObject:
    """A parameter; one in the path is always required."""
    return {
        "name": name,
        "in": place,
        "description": about,
        "required": place == "path",
        "schema": schema,
    }


def path_parameter(about: str) -> JsonObject:
    """The parameter `{id}` of a path."""
    return parameter("id", about, {"type": "string"}, "path")


def limit_parameter(about: str, default: int, most: int) -> JsonObject:
    """The size of a page."""
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return parameter("limit", about, schema)


def header(about: str, kind: str = "string") -> JsonObject:
    """A header of a response."""
    return {"description": about, "schema": {"type": kind}}


RETRY_AFTER: Final = {"Retry-After": header("Seconds after which to ask again.", "integer")}


def problem_answer(status: int) -> Answer:
    """The response with a problem document, which lists its codes."""
    codes = ", ".join(f"`{code}`" for code, value in STATUS_OF.items() if value == status)
    headers = RETRY_AFTER if status in (429, 503) else {}
    return Answer(codes, ProblemDocument, headers, MEDIA_TYPE)


JOBS: Final = OperationGroup("Jobs", problem_answer)
RUNNING: Final = OperationGroup("Running it", problem_answer)
