"""Examples for the OpenAPI document: bodies that work as they stand, which a test sends."""

from __future__ import annotations

from typing import Final

from api.openapi_parts import JsonObject

#: By path, of the operation that takes a body in JSON there.
BODIES: Final[dict[str, JsonObject]] = {
    "/jobs": {
        "one": {"summary": "One text", "value": {"input": "a photo of a cat"}},
        "several": {
            "summary": "Several texts, their vectors as one blob",
            "value": {
                "input": ["a photo of a cat", "ein Foto einer Katze"],
                "encoding_format": "base64",
            },
        },
        "strict": {
            "summary": "Vectors as the model gives them; a text that is too long fails",
            "value": {
                "input": ["neither cut", "nor scaled"],
                "truncate": False,
                "normalize": False,
            },
        },
    },
    "/v1/embeddings": {
        "several": {
            "summary": "What OpenAI's clients send",
            "value": {
                "model": "all-MiniLM-L6-v2",
                "input": ["a photo of a cat", "ein Foto einer Katze"],
                "encoding_format": "float",
            },
        },
    },
}
