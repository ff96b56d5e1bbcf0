"""Texts to token blocks through the Rust tokenizer, exactly as sentence-transformers does it.

The Rust tokenizer takes up to 900 bytes of memory for a character. So one call of it gets at most
`_CHARACTERS_A_CALL` characters, or one text: as much of that as usually fills the model's limit, or
in search of that `_MOST_CHARACTERS`. With a limit of up to 16,384 tokens that is half a gigabyte.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Literal

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as RustTokenizer

from worker.contract.errors import InvalidText
from worker.encoder.chats import ChatTemplate
from worker.encoder.tokens import TokenBlock

#: Texts up to this many characters for each token of the limit are tokenised whole.
_CHARACTERS_PER_TOKEN = 8
#: How far back from a cut to look for a space, in characters.
_SPACE_REACH = 256
#: Characters of one call of the Rust tokenizer, if no text alone has more.
_CHARACTERS_A_CALL = 2**18
#: Characters of a text that are read if it takes more than usual to fill the limit, or if the model
#: has none.
_MOST_CHARACTERS = 2**19
#: Prompts whose length is remembered, and the longest of them in characters.
_PROMPTS_REMEMBERED = 256
_LONGEST_REMEMBERED = 1024
#: Characters that are squeezed together: a few milliseconds, in which no other thread runs.
_CHARACTERS_A_SQUEEZE = 2**16


@dataclass(frozen=True, slots=True)
class TokenRules:
    """How a model wants its texts tokenised."""

    #: Longest text in tokens, special tokens included; None where the model has no limit.
    limit: int | None
    #: The side that is cut off.
    truncation_side: Literal["left", "right"] = "right"
    add_special_tokens: bool = True
    #: Whether pooling counts the tokens of the prompt.
    pool_prompt: bool = True
    default_prompt: str | None = None
    special_ids: frozenset[int] = frozenset()
    #: Whether a text without a single token has a vector; a transformer has none for it.
    takes_nothing: bool = False
    #: Makes texts into chats; None if the model reads plain texts.
    template: ChatTemplate | None = None


class Tokenizer:
    """A private copy of a model's tokenizer; any thread may use it, one at a time."""

    def __init__(self, rust: RustTokenizer, rules: TokenRules) -> None:
        self._rules = rules
        self._rust = RustTokenizer.from_str(rust.to_str())
        self._rust.encode_special_tokens = rust.encode_special_tokens
        self._rust.no_padding()
        self._rust.no_truncation()
        #: Characters of a text that usually fill the limit.
        self._reach = _MOST_CHARACTERS
        if rules.limit is not None:
            self._rust.enable_truncation(rules.limit, direction=rules.truncation_side)
            self._reach = rules.limit * _CHARACTERS_PER_TOKEN + 4 * _SPACE_REACH
        self._squeeze = _squeezer(self._rust)
        self._remembered = lru_cache(_PROMPTS_REMEMBERED)(self._count_prompt_tokens)

    def __call__(self, texts: Sequence[str], prompt: str | None = None) -> TokenBlock:
        """Tokens of `texts`; see `Encoder.tokenize`. Raises InvalidText."""
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"a text must be a string, not {type(text).__name__}")
        prompt = (self._rules.default_prompt if prompt is None else prompt) or ""
        if (template := self._rules.template) is not None:
            # Rendered whole, so that their characters count.
            calls = _calls(texts, len(prompt), sys.maxsize)
            return TokenBlock.join([self._chats(template, part, prompt) for part in calls])
        skip = self._prompt_tokens(prompt) if prompt and not self._rules.pool_prompt else 0
        calls = _calls(texts, len(prompt), self._reach)
        return TokenBlock.join([self._block(self._encode(part, prompt), skip) for part in calls])

    def _encode(self, texts: Sequence[str], prompt: str) -> list[Encoding]:
        most = self._reach - len(prompt)
        if max(map(len, texts), default=0) <= most:
            return self._encode_whole([prompt + text for text in texts] if prompt else texts)
        if self._rules.limit is None:
            raise InvalidText(f"the text is longer than {most:,} characters")
        encodings = self._encode_whole([self._begun(prompt, text) for text in texts])
        for index, text in enumerate(texts):
            if len(text) > most:
                encodings[index] = self._encode_enough(prompt, text, encodings[index])
        return encodings

    def _encode_enough(self, prompt: str, text: str, encoding: Encoding) -> Encoding:
        """The encoding of a long text, as if it had been tokenised whole.

        Tokens next to a cut can differ from those of the whole text; further away they do not.
        So a part will do if it gives more tokens than the limit by a margin, else take four times
        as much.
        """
        margin = 128 + (self._rules.limit or 0) // 4
        most = max(_MOST_CHARACTERS, 4 * self._reach)
        pieces, read, reach = self._pieces(prompt, text), "", self._reach
        while sum(len(part.ids) for part in encoding.overflowing) < margin:
            if reach == most:
                raise InvalidText(
                    f"the text has more than {most:,} characters, too few of them in tokens"
                )
            reach = min(4 * reach, most)
            while len(read) <= reach and (piece := next(pieces, None)) is not None:
                read = piece + read if self._rules.truncation_side == "left" else read + piece
            encoding = self._encode_whole([self._cut(read, reach)])[0]
            if len(read) <= reach:
                break
        return encoding

    def _encode_whole(self, texts: Sequence[str]) -> list[Encoding]:
        try:
            return self._rust.encode_batch_fast(
                texts, add_special_tokens=self._rules.add_special_tokens
            )
        except BaseException as error:
            # A panic in Rust arrives as a BaseException, which would take the process down.
            if type(error).__name__ == "PanicException":
                raise ValueError("the tokenizer cannot take this text") from error
            raise

    def _cut(self, text: str, reach: int) -> str:
        """At most `reach` characters of `text` from the side that stays, cut at a space if near."""
        if len(text) <= reach:
            return text
        if self._rules.truncation_side == "left":
            space = text.find(" ", len(text) - reach, len(text) - reach + _SPACE_REACH)
            return text[space if space >= 0 else len(text) - reach :]
        space = text.rfind(" ", reach - _SPACE_REACH, reach)
        return text[: space if space >= 0 else reach]

    def _begun(self, prompt: str, text: str) -> str:
        """What `_cut` leaves of prompt and text, without a copy of all of both."""
        reach = self._reach
        if self._rules.truncation_side == "left":
            kept = text[-reach - 1 :]
            return self._cut(prompt[-max(reach + 1 - len(kept), 0) or len(prompt) :] + kept, reach)
        return self._cut(prompt[: reach + 1] + text[: max(reach + 1 - len(prompt), 0)], reach)

    def _pieces(self, prompt: str, text: str) -> Iterator[str]:
        """Prompt and text in squeezed pieces, beginning at the side that stays."""
        size = _CHARACTERS_A_SQUEEZE
        if self._rules.truncation_side == "right":
            for whole in (prompt, text):
                for start in range(0, len(whole), size):
                    yield self._squeeze(whole[start : start + size])
        else:
            for whole in (text, prompt):
                for stop in range(len(whole), 0, -size):
                    yield self._squeeze(whole[max(stop - size, 0) : stop])

    def _block(self, encodings: list[Encoding], skip: int) -> TokenBlock:
        rows = [encoding.ids for encoding in encodings]
        lengths = [len(row) for row in rows]
        if not (self._rules.takes_nothing or all(lengths)):
            raise ValueError("a text without tokens has no vector in this model")
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1]))
        truncated = np.zeros(len(rows), dtype=np.bool_)
        for index, length in enumerate(lengths):
            # Asking a short encoding for its overflow would cost more than tokenising it.
            if length == self._rules.limit:
                truncated[index] = bool(encodings[index].overflowing)
        return TokenBlock(ids, offsets, np.full(len(rows), skip, dtype=np.int32), truncated)

    def _chats(self, template: ChatTemplate, texts: Sequence[str], prompt: str) -> TokenBlock:
        block = self._block(self._encode(template.render(texts, prompt), ""), 0)
        full = np.flatnonzero(block.lengths == self._rules.limit)
        if len(full):
            end = template.end(prompt)[-int(block.lengths[full[0]]) :]
            for stop in block.offsets[full + 1]:
                block.ids[stop - len(end) : stop] = end
        return block

    def _prompt_tokens(self, prompt: str) -> int:
        short = len(prompt) <= _LONGEST_REMEMBERED
        return self._remembered(prompt) if short else self._count_prompt_tokens(prompt)

    def _count_prompt_tokens(self, prompt: str) -> int:
        """Tokens of a prompt alone, without a special token that closes it.

        The rule of `Transformer._get_prompt_length` in sentence-transformers.
        """
        ids = self._encode([prompt], "")[0].ids
        return len(ids) - (bool(ids) and ids[-1] in self._rules.special_ids)


def _calls(texts: Sequence[str], prompt: int, reach: int) -> Iterator[Sequence[str]]:
    """The texts in parts for one call each; `prompt`: its characters."""
    if sum(map(len, texts)) + prompt * len(texts) <= _CHARACTERS_A_CALL:
        yield texts
        return
    part: list[str] = []
    left = _CHARACTERS_A_CALL
    for text in texts:
        characters = min(prompt + len(text), reach)
        if part and characters > left:
            yield part
            part, left = [], _CHARACTERS_A_CALL
        part.append(text)
        left -= characters
    yield part


def _squeezer(rust: RustTokenizer) -> Callable[[str], str]:
    """What shortens a piece of a very long text without changing a token of the whole.

    BERT's tokenizer is the one that reads on without end: blanks give no tokens at all, and a
    word of more than 100 letters gives a single unknown one, however long it is. What is left of
    a word in several pieces has more than 100 letters if the word had.
    """
    word_limit: int = getattr(rust.model, "max_input_chars_per_word", 0)
    is_bert = type(rust.pre_tokenizer).__name__ == "BertPreTokenizer" and word_limit > 0
    added = (token.content for token in rust.get_added_tokens_decoder().values())
    if not is_bert or any(re.search("^[A-Za-z0-9]+$", token) for token in added):
        return lambda text: text
    blanks = re.compile(r"[ \t\n\r]{2,}")
    # From the beginning of a word only: else a search would begin anew at each of its letters.
    word = re.compile(f"(?<![A-Za-z0-9])([A-Za-z0-9]{{{word_limit + 1}}})[A-Za-z0-9]+")
    return lambda text: word.sub(r"\1", blanks.sub(" ", text))
