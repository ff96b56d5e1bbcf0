"""The routes under `/v1` put together, and what every answer there has."""

from __future__ import annotations

import time

from flask import Blueprint, Flask, Response, g

from api import mounting
from api.bulk import batches, files
from api.openai import embeddings, models

PREFIX = "/v1"

blueprint = Blueprint("openai", __name__, url_prefix=PREFIX)
for _part in (embeddings, models, files, batches):
    blueprint.register_blueprint(_part.blueprint)


def install(place: Flask | Blueprint) -> None:
    """Add the routes to `place`, and to every answer under `/v1`, errors too, OpenAI's headers."""
    place.register_blueprint(blueprint)

    @place.after_request
    def describe(response: Response) -> Response:
        if "began" in g and mounting.path().startswith(f"{PREFIX}/"):
            milliseconds = round((time.perf_counter() - g.began) * 1000)
            response.headers["openai-processing-ms"] = str(milliseconds)
        return response
