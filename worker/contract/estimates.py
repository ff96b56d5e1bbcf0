"""Estimates of a job's cost before tokenization."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from worker.contract.models import MOST_WINDOWS, ModelInfo, prompt_text

if TYPE_CHECKING:
    from worker.contract.jobs import JobOptions

#: About four characters make a token; two special tokens are added. In dense scripts, with more
#: UTF-8 bytes per character, a character makes about one token.
_CHARACTERS_A_TOKEN = 4
_TOKENS_AN_EXTRA_BYTE = 3 / 8
_SPECIAL_TOKENS = 2
#: Tokens past which most models cut, and the size of a vector, if the model is not known.
USUAL_LIMIT = 512
USUAL_DIMENSIONS = 384
#: A model of these sizes.
USUAL_MODEL: Final = ModelInfo(
    name="",
    dimensions=USUAL_DIMENSIONS,
    max_tokens=USUAL_LIMIT,
    device="",
    backend="",
    dtype="",
    packed=True,
    # An owner may have any number of tokens waiting in a lane.
    batch_tokens=0,
)
#: Bytes of one number: as a JSON float, and as base64 of four bytes.
_FLOAT_BYTES = 11.0
_BASE64_BYTES = 5.34


def of_job(texts: Iterable[Any], options: JobOptions, info: ModelInfo) -> int:
    """Tokens that a model may read of a job's texts, prompts included."""
    prompt = prompt_text(options, info)
    before = _content(prompt) if prompt else 0
    windows = MOST_WINDOWS if options.long == "mean" else 1
    return tokens(texts, info.max_tokens, prompt=before, windows=windows)


def tokens(
    texts: Iterable[Any], limit: int = USUAL_LIMIT, *, prompt: int = 0, windows: int = 1
) -> int:
    """Tokens that a model may read of some texts together; see `tokens_of`."""
    count = 0
    for text in texts:
        count += tokens_of(text, limit, prompt=prompt, windows=windows)
    return count


def tokens_of(text: Any, limit: int = USUAL_LIMIT, *, prompt: int = 0, windows: int = 1) -> int:
    """Tokens that a model may read of a text; 0 for a value that is not a string.

    `limit` is the model's longest input, `prompt` the tokens put before each, and `windows` the
    most inputs that one text is read in.
    """
    if not isinstance(text, str):
        return 0
    count = _content(text) + _SPECIAL_TOKENS
    if prompt:
        inputs = min(-(-count // max(limit - prompt, 1)), windows)
        count += inputs * prompt
    return min(count, limit * windows)


def _content(text: str) -> int:
    count = len(text) // _CHARACTERS_A_TOKEN
    if text.isascii():
        return count
    extra = len(text.encode(errors="surrogatepass")) - len(text)
    return count + int(extra * _TOKENS_AN_EXTRA_BYTE)


def result_bytes(texts: int, dimensions: int = USUAL_DIMENSIONS, *, base64: bool = False) -> int:
    """Bytes that the stored result of a job may take."""
    return int(texts * dimensions * (_BASE64_BYTES if base64 else _FLOAT_BYTES)) + 300
