"""OpenAI's API under `/v1`: embeddings, models, files and batches.

In reading order:

- `embeddings`: `POST /v1/embeddings`
- `deadlines`: the timeout of a request, and closed connections
- `models`: list the served models
- `files`: routes of files
- `uploads`: stream a multipart body into the storage
- `batches`: routes of batches
- `pages`: pagination as OpenAI's clients expect it
- `schemas`: requests and answers, as models
- `errors`: errors in OpenAI's format
"""

from __future__ import annotations

import time
from typing import Final

from flask import Blueprint
from werkzeug.datastructures import Headers

from api.dialects import Dialect
from api.dialects.openai import batches, embeddings, errors, files, models

blueprint = Blueprint("openai", __name__, url_prefix="/v1")
for _part in (embeddings, models, files, batches):
    blueprint.register_blueprint(_part.blueprint)


def add_headers(headers: Headers, began: float) -> None:
    """Add OpenAI's headers to a response under `/v1`, also to an error."""
    headers["openai-processing-ms"] = str(round((time.perf_counter() - began) * 1000))


DIALECT: Final = Dialect(blueprint, errors.response, add_headers)
