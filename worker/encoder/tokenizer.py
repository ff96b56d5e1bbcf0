"""Texts to token blocks through the Rust tokenizer, exactly as sentence-transformers does it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Literal

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as RustTokenizer

from worker.encoder.chats import ChatTemplate
from worker.tokens import TokenBlock

#: Texts up to this many characters for each token of the limit are tokenised whole.
_CHARACTERS_PER_TOKEN = 8
#: How far back from a cut to look for a space, in characters.
_SPACE_REACH = 256
#: Different prompts whose length is remembered.
_PROMPTS_REMEMBERED = 256


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
        if rules.limit is not None:
            self._rust.enable_truncation(rules.limit, direction=rules.truncation_side)
        self._squeeze = _squeezer(self._rust)
        self._prompt_tokens = lru_cache(_PROMPTS_REMEMBERED)(self._count_prompt_tokens)

    def __call__(self, texts: Sequence[str], prompt: str | None = None) -> TokenBlock:
        """Tokens of `texts`; see `Encoder.tokenize`."""
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"a text must be a string, not {type(text).__name__}")
        if prompt is None:
            prompt = self._rules.default_prompt
        if self._rules.template is not None:
            return self._chats(self._rules.template, texts, prompt)
        if prompt:
            texts = [prompt + text for text in texts]
        skip = self._prompt_tokens(prompt) if prompt and not self._rules.pool_prompt else 0
        return self._block(self._encode(texts), skip)

    def _encode(self, texts: Sequence[str]) -> list[Encoding]:
        limit = self._rules.limit
        if limit is None:
            return self._encode_whole(texts)
        reach = limit * _CHARACTERS_PER_TOKEN + 4 * _SPACE_REACH
        if max(map(len, texts), default=0) <= reach:
            return self._encode_whole(texts)
        encodings = self._encode_whole([self._cut(text, reach) for text in texts])
        for index, text in enumerate(texts):
            if len(text) > reach:
                encodings[index] = self._encode_enough(text, encodings[index], reach)
        return encodings

    def _encode_enough(self, text: str, encoding: Encoding, reach: int) -> Encoding:
        """The encoding of a long text, as if it had been tokenised whole.

        Tokens next to a cut can differ from those of the whole text; further away they do not.
        So a part will do if it gives more tokens than the limit by a margin, else take four times
        as much.
        """
        limit = self._rules.limit or 0
        margin = 128 + limit // 4
        while reach < len(text):
            if sum(len(part.ids) for part in encoding.overflowing) >= margin:
                return encoding
            text = self._squeeze(text)
            reach *= 4
            encoding = self._encode_whole([self._cut(text, reach)])[0]
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

    def _chats(
        self, template: ChatTemplate, texts: Sequence[str], prompt: str | None
    ) -> TokenBlock:
        block = self._block(self._encode(template.render(texts, prompt)), 0)
        full = np.flatnonzero(block.lengths == self._rules.limit)
        if len(full):
            end = template.end(prompt)[-int(block.lengths[full[0]]) :]
            for stop in block.offsets[full + 1]:
                block.ids[stop - len(end) : stop] = end
        return block

    def _count_prompt_tokens(self, prompt: str) -> int:
        """Tokens of a prompt alone, without a special token that closes it.

        The rule of `Transformer._get_prompt_length` in sentence-transformers.
        """
        ids = self._encode([prompt])[0].ids
        return len(ids) - (bool(ids) and ids[-1] in self._rules.special_ids)


def _squeezer(rust: RustTokenizer) -> Callable[[str], str]:
    """What shortens a very long text without changing a token of it.

    BERT's tokenizer is the one that reads on without end: blanks give no tokens at all, and a
    word of more than 100 letters gives a single unknown one, however long it is.
    """
    word_limit: int = getattr(rust.model, "max_input_chars_per_word", 0)
    is_bert = type(rust.pre_tokenizer).__name__ == "BertPreTokenizer" and word_limit > 0
    added = (token.content for token in rust.get_added_tokens_decoder().values())
    if not is_bert or any(re.search("^[A-Za-z0-9]+$", token) for token in added):
        return lambda text: text
    blanks = re.compile(r"[ \t\n\r]{2,}")
    word = re.compile(f"([A-Za-z0-9]{{{word_limit + 1}}})[A-Za-z0-9]+")
    return lambda text: word.sub(r"\1", blanks.sub(" ", text))
