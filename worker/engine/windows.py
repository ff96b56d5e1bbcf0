"""A text beyond the model's limit as several texts within it: windows, cut between words.

Each window is a part of the text that is tokenised for itself, with the prompt before it, so that
its vector is the one that the library gives for that part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from worker.contract.jobs import MOST_WINDOWS
from worker.encoder.protocol import Encoder
from worker.tokens import TokenBlock

#: Characters of the parts that windows are made of, for each token of the limit, and at least:
#: words are mostly shorter. A window lacks one part at most.
_CHARACTERS_A_PART = 0.125
_SHORTEST_PART = 32
#: Characters for each token of all windows that are looked at; words have fewer.
_CHARACTERS_A_TOKEN = 8


class Split(NamedTuple):
    """The windows of a text, in order."""

    texts: list[str]
    #: Their tokens, prompts and special tokens included; a text each.
    block: TokenBlock
    #: Whether some of the text is in no window.
    cut: bool


def split(encoder: Encoder, text: str, prompt: str | None) -> Split | None:
    """The windows of a text; None where the prompt leaves no room, or there is nothing to split.

    Each is as long as the model takes, but for a few words. At most `MOST_WINDOWS`; what is
    beyond them is cut. Raises whatever the tokenizer raises.
    """
    limit = encoder.info.max_tokens
    shortest = encoder.tokenize(["a"], prompt)
    room = limit - shortest.tokens + 1
    reach = MOST_WINDOWS * limit * _CHARACTERS_A_TOKEN
    parts = list(_parts(text[:reach], max(int(limit * _CHARACTERS_A_PART), _SHORTEST_PART)))
    if shortest.truncated[0] or not parts:
        return None
    special = encoder.tokenize(["a"], "").tokens - 1
    costs = encoder.tokenize(parts, "").lengths - special
    windows = _packed(parts, costs.tolist(), room)
    cut = len(text) > reach or len(windows) > MOST_WINDOWS
    windows = windows[:MOST_WINDOWS]
    while True:
        texts = ["".join(window).strip() for window in windows]
        block = encoder.tokenize(texts, prompt)
        # Parts can have more tokens together than each for itself, or one too many.
        too_long = block.truncated.tolist()
        if not any(is_too_long and len(texts[row]) > 1 for row, is_too_long in enumerate(too_long)):
            return Split(texts, block, cut or any(too_long))
        windows = list(_halved(windows, too_long))
        cut = cut or len(windows) > MOST_WINDOWS
        windows = windows[:MOST_WINDOWS]


def _parts(text: str, characters: int) -> Iterator[str]:
    """The text in order, blanks before words: words together up to so many characters.

    A longer word is cut where it has as many.
    """
    pattern = rf"\s*(?:\S[\s\S]{{0,{characters - 1}}}(?=\s|\Z)|\S{{1,{characters}}})"
    for match in re.finditer(pattern, text):
        yield match[0]


def _packed(parts: Sequence[str], costs: Sequence[int], room: int) -> list[list[str]]:
    """Parts that follow one another, as many together as have room."""
    windows: list[list[str]] = []
    left = 0
    for part, cost in zip(parts, costs, strict=True):
        if not windows or cost > left:
            windows.append([])
            left = room
        windows[-1].append(part)
        left -= cost
    return windows


def _halved(windows: Sequence[list[str]], too_long: Sequence[bool]) -> Iterator[list[str]]:
    """Windows that are too long as two each, where they hold more than a character."""
    for window, is_too_long in zip(windows, too_long, strict=True):
        parts = window if len(window) > 1 else list(window[0])
        middle = len(parts) // 2
        if is_too_long and middle:
            # A part that is cut may have nothing but blanks on one side.
            yield from (half for half in (parts[:middle], parts[middle:]) if "".join(half).strip())
        else:
            yield window
