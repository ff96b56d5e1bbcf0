"""What a job will cost, before anybody has tokenised it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: About four characters make a token, two special ones come on top.
_CHARACTERS_A_TOKEN = 4
_SPECIAL_TOKENS = 2
#: Tokens past which most models cut, and the size of a vector, where the model is not known.
USUAL_LIMIT = 512
_USUAL_DIMENSIONS = 384
#: Bytes of one number: as a JSON float, and as base64 of four bytes.
_FLOAT_BYTES = 11.0
_BASE64_BYTES = 5.34


def tokens_of(text: Any, limit: int = USUAL_LIMIT) -> int:
    """Tokens that a text may have, at most `limit`; 0 for what is no text."""
    if not isinstance(text, str):
        return 0
    return min(len(text) // _CHARACTERS_A_TOKEN + _SPECIAL_TOKENS, limit)


def tokens(texts: Iterable[Any], limit: int = USUAL_LIMIT) -> int:
    """Tokens that some texts may have together."""
    count = 0
    for text in texts:
        count += tokens_of(text, limit)
    return count


def result_bytes(texts: int, dimensions: int = _USUAL_DIMENSIONS, *, base64: bool = False) -> int:
    """Bytes that the stored result of a job may take."""
    return int(texts * dimensions * (_BASE64_BYTES if base64 else _FLOAT_BYTES)) + 300
