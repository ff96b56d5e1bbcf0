"""Texts to token blocks through the Rust tokenizer, with the results of sentence-transformers.

The Rust tokenizer takes up to 900 bytes of memory for a character. So one call encodes at most
`_CHARACTERS_A_CALL` characters, or one text. Of a long text it encodes as much as usually fills the
model's limit, then larger parts up to `_MOST_CHARACTERS` if that does not suffice. With a limit of
up to 16,384 tokens the largest part takes half a gigabyte.
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
from worker.contract.models import UNLIMITED
from worker.encoder.chats import ChatTemplate
from worker.encoder.tokens import TokenBlock

#: Texts up to this many characters for each token of the limit are tokenized whole.
_CHARACTERS_PER_TOKEN = 8
#: Characters before a cut in which to search for a space.
_SPACE_REACH = 256
#: Characters of one call of the Rust tokenizer, if no text alone has more.
_CHARACTERS_A_CALL = 2**18
#: Characters of a text to read if it takes more than usual to fill the limit, or without a limit.
_MOST_CHARACTERS = 2**19
#: Cached lengths of prompts, and the longest prompt to cache in characters.
_CACHED_PROMPTS = 256
_LONGEST_CACHED = 1024
#: Characters to squeeze in one step: a few milliseconds, in which no other thread runs.
_CHARACTERS_A_SQUEEZE = 2**16


@dataclass(frozen=True, slots=True)
class TokenRules:
    """The tokenization rules of a model."""

    #: Longest text in tokens, special tokens included; None without a limit.
    limit: int | None
    #: The side that truncation removes.
    truncation_side: Literal["left", "right"] = "right"
    add_special_tokens: bool = True
    #: Whether pooling counts the tokens of the prompt.
    pool_prompt: bool = True
    default_prompt: str | None = None
    special_ids: frozenset[int] = frozenset()
    #: Whether a text without tokens has a vector, as in a table of token vectors.
    accepts_empty: bool = False
    #: Renders texts as chats; None if the model reads plain texts.
    template: ChatTemplate | None = None


class Tokenizer:
    """A private copy of a model's tokenizer; any thread may use it, one at a time."""

    def __init__(self, rust: RustTokenizer, rules: TokenRules) -> None:
        self.rules = rules
        #: Longest text in tokens, as in `ModelInfo`.
        self.max_tokens = rules.limit or UNLIMITED
        self._rust = private_copy(rust)
        #: Characters of a text that usually fill the limit.
        self._reach = _MOST_CHARACTERS
        if rules.limit is not None:
            self._rust.enable_truncation(rules.limit, direction=rules.truncation_side)
            self._reach = rules.limit * _CHARACTERS_PER_TOKEN + 4 * _SPACE_REACH
        self._squeeze = _squeezer(self._rust)
        self._cached_prompt_tokens = lru_cache(_CACHED_PROMPTS)(self._count_prompt_tokens)

    def __call__(self, texts: Sequence[str], prompt: str | None = None) -> TokenBlock:
        """Tokens of `texts`; see `Encoder.tokenize`. Raises InvalidText."""
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"a text must be a string, not {type(text).__name__}")
        prompt = (self.rules.default_prompt if prompt is None else prompt) or ""
        if (template := self.rules.template) is not None:
            # Rendered whole, so every character counts.
            calls = _calls(texts, len(prompt), sys.maxsize)
            return TokenBlock.join([self._chats(template, part, prompt) for part in calls])
        skip = self._prompt_tokens(prompt) if prompt and not self.rules.pool_prompt else 0
        calls = _calls(texts, len(prompt), self._reach)
        return TokenBlock.join([self._block(self._encode(part, prompt), skip) for part in calls])

    def _encode(self, texts: Sequence[str], prompt: str) -> list[Encoding]:
        most = self._reach - len(prompt)
        if max(map(len, texts), default=0) <= most:
            return self._encode_whole([prompt + text for text in texts] if prompt else texts)
        if self.rules.limit is None:
            raise InvalidText(f"the text is longer than {most:,} characters")
        encodings = self._encode_whole([self._begin(prompt, text) for text in texts])
        for index, text in enumerate(texts):
            if len(text) > most:
                encodings[index] = self._encode_enough(prompt, text, encodings[index])
        return encodings

    def _encode_enough(self, prompt: str, text: str, encoding: Encoding) -> Encoding:
        """Return the encoding of a long text, equal to that of the whole text.

        Tokens near a cut can differ from those of the whole text. So a part is large enough if its
        tokens exceed the limit by a margin; else the next part is four times as large.
        """
        margin = 128 + (self.rules.limit or 0) // 4
        most = max(_MOST_CHARACTERS, 4 * self._reach)
        pieces, read, reach = self._pieces(prompt, text), "", self._reach
        while sum(len(part.ids) for part in encoding.overflowing) < margin:
            if reach == most:
                raise InvalidText(
                    f"the text has more than {most:,} characters, too few of them in tokens"
                )
            reach = min(4 * reach, most)
            while len(read) <= reach and (piece := next(pieces, None)) is not None:
                read = piece + read if self.rules.truncation_side == "left" else read + piece
            encoding = self._encode_whole([self._cut(read, reach)])[0]
            if len(read) <= reach:
                break
        return encoding

    def _encode_whole(self, texts: Sequence[str]) -> list[Encoding]:
        try:
            return self._rust.encode_batch_fast(
                texts, add_special_tokens=self.rules.add_special_tokens
            )
        except BaseException as error:
            # A panic in Rust is a BaseException, which would stop the process.
            if type(error).__name__ == "PanicException":
                raise ValueError("the tokenizer cannot take this text") from error
            raise

    def _cut(self, text: str, reach: int) -> str:
        """At most `reach` characters of `text` from the side that stays, cut at a close space."""
        if len(text) <= reach:
            return text
        if self.rules.truncation_side == "left":
            space = text.find(" ", len(text) - reach, len(text) - reach + _SPACE_REACH)
            return text[space if space >= 0 else len(text) - reach :]
        space = text.rfind(" ", reach - _SPACE_REACH, reach)
        return text[: space if space >= 0 else reach]

    def _begin(self, prompt: str, text: str) -> str:
        """Cut prompt and text together, without a copy of all of both."""
        enough = self._reach + 1
        if self.rules.truncation_side == "left":
            return self._cut(prompt[-enough:] + text[-enough:], self._reach)
        return self._cut(prompt[:enough] + text[:enough], self._reach)

    def _pieces(self, prompt: str, text: str) -> Iterator[str]:
        """Prompt and text in squeezed pieces, beginning at the side that stays."""
        size = _CHARACTERS_A_SQUEEZE
        forwards = self.rules.truncation_side == "right"
        for whole in (prompt, text) if forwards else (text, prompt):
            last = len(whole) - size
            starts = range(0, len(whole), size) if forwards else range(last, -size, -size)
            for start in starts:
                yield self._squeeze(whole[max(start, 0) : start + size])

    def _block(self, encodings: list[Encoding], skip: int) -> TokenBlock:
        rows = [encoding.ids for encoding in encodings]
        lengths = [len(row) for row in rows]
        if not (self.rules.accepts_empty or all(lengths)):
            raise ValueError("a text without tokens has no vector in this model")
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1]))
        truncated = np.zeros(len(rows), dtype=np.bool_)
        for index, length in enumerate(lengths):
            # Only full encodings, since reading the overflow takes longer than tokenizing.
            if length == self.rules.limit:
                truncated[index] = bool(encodings[index].overflowing)
        return TokenBlock(ids, offsets, np.full(len(rows), skip, dtype=np.int32), truncated)

    def _chats(self, template: ChatTemplate, texts: Sequence[str], prompt: str) -> TokenBlock:
        block = self._block(self._encode(template.render(texts, prompt), ""), 0)
        full = np.flatnonzero(block.lengths == self.rules.limit)
        if len(full):
            end = template.end(prompt)[-int(block.lengths[full[0]]) :]
            for stop in block.offsets[full + 1]:
                block.ids[stop - len(end) : stop] = end
        return block

    def _prompt_tokens(self, prompt: str) -> int:
        short = len(prompt) <= _LONGEST_CACHED
        return self._cached_prompt_tokens(prompt) if short else self._count_prompt_tokens(prompt)

    def _count_prompt_tokens(self, prompt: str) -> int:
        """Tokens of a prompt alone, without a final special token.

        The rule of `Transformer._get_prompt_length` in sentence-transformers.
        """
        ids = self._encode([prompt], "")[0].ids
        return len(ids) - (bool(ids) and ids[-1] in self.rules.special_ids)


def private_copy(rust: RustTokenizer) -> RustTokenizer:
    """Copy a tokenizer, without padding and truncation."""
    copy = RustTokenizer.from_str(rust.to_str())
    copy.encode_special_tokens = rust.encode_special_tokens
    copy.no_padding()
    copy.no_truncation()
    return copy


def _calls(texts: Sequence[str], prompt: int, reach: int) -> Iterator[Sequence[str]]:
    """Split texts into parts for one call each; `prompt`: its length in characters."""
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
    """Return a function that shortens a piece of a very long text and keeps the text's tokens.

    Only BERT's tokenizer can read many characters without a token: blanks have no tokens, and a
    word of more than 100 letters is one unknown token. The rest of such a word still has more than
    100 letters, even if the word spans several pieces.
    """
    word_limit: int = getattr(rust.model, "max_input_chars_per_word", 0)
    is_bert = type(rust.pre_tokenizer).__name__ == "BertPreTokenizer" and word_limit > 0
    added = (token.content for token in rust.get_added_tokens_decoder().values())
    if not is_bert or any(re.search("^[A-Za-z0-9]+$", token) for token in added):
        return lambda text: text
    blanks = re.compile(r"[ \t\n\r]{2,}")
    # Anchored at the beginning of a word, else the search would restart at each letter.
    word = re.compile(f"(?<![A-Za-z0-9])([A-Za-z0-9]{{{word_limit + 1}}})[A-Za-z0-9]+")
    return lambda text: word.sub(r"\1", blanks.sub(" ", text))
