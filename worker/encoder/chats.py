"""Texts as messages of a chat, for models with a chat template.

The rules are those of `Transformer.preprocess` in sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from sentence_transformers.base.modules import Transformer
from tokenizers import Tokenizer as RustTokenizer


class ChatTemplate:
    """The chat template of a model; any thread may use it, one at a time.

    `rust`: its tokenizer without truncation, for this object alone.
    """

    def __init__(self, first: Transformer, rust: RustTokenizer) -> None:
        self._formatter = first.input_formatter
        self._tokenizer = first.tokenizer
        self._options = first.processing_kwargs.get("chat_template", {})
        self._rust = rust

    def render(self, texts: Sequence[str], prompt: str | None) -> list[str]:
        """Render each text as the user's message, after `prompt` as the system's message."""
        _, chats = self._formatter.batch_to_message("text", {"text": list(texts)})
        messages = chats["message"]
        if prompt:
            messages = self._formatter.prepend_prompt_to_messages(messages, prompt)
        rendered: list[str] = self._tokenizer.apply_chat_template(
            messages, tokenize=False, **self._options
        )
        return rendered

    def end(self, prompt: str | None) -> list[int]:
        """Tokens at the end of every chat, which the template adds.

        Truncation removes them and the library restores them, since pooling may read the last one.
        Chats of two texts without a common token have only the template's tokens at the end in
        common.
        """
        chats = self.render(["0", "1 2 3 4"], prompt)
        first, second = self._rust.encode_batch_fast(chats, add_special_tokens=False)
        pairs = zip(reversed(first.ids), reversed(second.ids), strict=False)
        common = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        # Chats that are equal do not contain the text, so they have no end.
        return common[::-1] if len(common) < min(len(first.ids), len(second.ids)) else []
