"""The routes under `/v1` put together, and the header that every answer there has."""

from __future__ import annotations

import time

from flask import Blueprint
from werkzeug.datastructures import Headers

from api.dialects.openai import embeddings, models
from api.dialects.openai_batches import batches, files

PREFIX = "/v1"

blueprint = Blueprint("openai", __name__, url_prefix=PREFIX)
for _part in (embeddings, models, files, batches):
    blueprint.register_blueprint(_part.blueprint)


def add_headers(headers: Headers, began: float) -> None:
    """Add OpenAI's headers to an answer under `/v1`, an error too."""
    headers["openai-processing-ms"] = str(round((time.perf_counter() - began) * 1000))
