"""Routes and formats of other services: each file or folder here is a dialect.

- `openai`: OpenAI's embeddings, models, files and batches

The modules are found automatically; each has `DIALECT`. Routes declare their operations
(`api.operations`), which adds them to the OpenAPI document. No other change is necessary.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

from flask import Blueprint, Response
from werkzeug.datastructures import Headers

from api.errors import Problem


class Dialect(NamedTuple):
    """Another service's routes and formats, under a path of their own."""

    #: With a `url_prefix`, under which every path belongs to the dialect.
    blueprint: Blueprint
    #: The response to an error, also to that of a path without a route.
    error_response: Callable[[Problem], Response]
    #: Adds headers to a response, given the `time.perf_counter` of its request's start.
    add_headers: Callable[[Headers, float], None]

    @property
    def prefix(self) -> str:
        return self.blueprint.url_prefix or ""


def dialects() -> list[Dialect]:
    """Return the dialects of all modules in this package, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}").DIALECT for name in names]
