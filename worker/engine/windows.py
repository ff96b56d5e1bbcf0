"""A text beyond the model's limit as several texts within it: windows, cut between words.

Each window is a part of the text that is tokenised for itself, with the prompt before it, so that
its vector is the one that the library gives for that part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from worker.contract.models import MOST_WINDOWS
from worker.encoder.protocol import Encoder
from worker.encoder.tokens import TokenBlock

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


@dataclass(slots=True)
class _Window:
    """Consecutive parts of the text, and their tokens once they are tokenised."""

    parts: list[str]
    block: TokenBlock | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts).strip()

    @property
    def truncated(self) -> bool:
        return self.block is not None and bool(self.block.truncated[0])

    def halves(self) -> Iterator[_Window]:
        """The window, or two if it is too long and holds more than a character."""
        if not self.truncated or len(self.text) < 2:
            yield self
            return
        # A part's characters are its parts.
        whole: str | list[str] = self.parts if len(self.parts) > 1 else self.parts[0]
        middle = len(whole) // 2
        for half in (whole[:middle], whole[middle:]):
            window = _Window([half] if isinstance(half, str) else half)
            # A part that is cut may have nothing but blanks on one side.
            if window.text:
                yield window


def split(encoder: Encoder, text: str, prompt: str | None) -> Split | None:
    """The windows of a text; None where the prompt leaves no room, or there is nothing to split.

    Each is as long as the model takes, but for a few words. At most `MOST_WINDOWS`; what is
    beyond them is cut. Takes time in proportion to the text. Raises whatever the tokenizer raises.
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
    cut = len(text) > reach
    while True:
        cut = cut or len(windows) > MOST_WINDOWS
        windows = windows[:MOST_WINDOWS]
        _tokenize([window for window in windows if window.block is None], encoder, prompt)
        # Parts can have more tokens together than each for itself, or one too many.
        halved = list(chain.from_iterable(window.halves() for window in windows))
        if all(window.block is not None for window in halved):
            break
        windows = halved
    texts = [window.text for window in windows]
    block = TokenBlock.join([window.block for window in windows if window.block is not None])
    return Split(texts, block, cut or bool(block.truncated.any()))


def _tokenize(windows: Sequence[_Window], encoder: Encoder, prompt: str | None) -> None:
    """Set the tokens of windows that have none yet."""
    block = encoder.tokenize([window.text for window in windows], prompt)
    for row, window in enumerate(windows):
        window.block = block.slice(row, row + 1)


def _parts(text: str, characters: int) -> Iterator[str]:
    """The text in order, blanks before words: words together up to so many characters.

    A longer word is cut where it has as many. No character is looked at more than a few times.
    """
    blanks = re.compile(r"\s*")
    words = re.compile(rf"\S[\s\S]{{0,{characters - 1}}}(?=\s|\Z)|\S{{1,{characters}}}")
    start = 0
    # Blanks apart, since a search for them and a word begins anew at each of them.
    while match := words.match(text, blanks.match(text, start).end()):  # type: ignore[union-attr]
        yield text[start : match.end()]
        start = match.end()


def _packed(parts: Sequence[str], costs: Sequence[int], room: int) -> list[_Window]:
    """Parts that follow one another, as many together as have room."""
    windows: list[_Window] = []
    left = 0
    for part, cost in zip(parts, costs, strict=True):
        if not windows or cost > left:
            windows.append(_Window([]))
            left = room
        windows[-1].parts.append(part)
        left -= cost
    return windows
