"""The tokenization rules of a sentence-transformers model, read from the loaded model."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer as RustTokenizer

from worker.contract.errors import ModelUnavailable
from worker.encoder.chats import ChatTemplate
from worker.encoder.tokenizer import Tokenizer, TokenRules, private_copy

#: A tokenizer with a larger "maximum" is without limit.
_NO_LIMIT = 10**9

#: Keys of a model's `processing_kwargs` that change how its tokenizer is called.
_CALL_OPTIONS = frozenset(
    ("text", "common", "padding", "truncation", "max_length", "restore_suffix", "tokenizer_kwargs")
)


def tokenizer_of(model: SentenceTransformer) -> Tokenizer:
    """Return a tokenizer with the rules of `model`.

    Raises `ModelUnavailable` if the model does not read plain texts through a Rust tokenizer.
    """
    first = model[0]
    if isinstance(first, StaticEmbedding):
        return Tokenizer(first.tokenizer, _rules_of_table(model, first.tokenizer))
    rust = _rust_tokenizer(first)
    _check_call_options(first)
    is_chat = _is_chat(first)
    rules = TokenRules(
        limit=_limit(model),
        truncation_side=first.tokenizer.truncation_side,
        # A chat template adds its own, and pooling covers its prompts.
        add_special_tokens=not is_chat,
        pool_prompt=is_chat
        or all(part.include_prompt for part in model if isinstance(part, Pooling)),
        default_prompt=_default_prompt(model),
        special_ids=frozenset(first.tokenizer.all_special_ids),
        template=ChatTemplate(first, private_copy(rust)) if is_chat else None,
    )
    return Tokenizer(rust, rules)


def takes_token_types(model: SentenceTransformer) -> bool:
    """Whether the library passes `token_type_ids` to the model."""
    return "token_type_ids" in model.tokenizer.model_input_names


def position_offset(model: SentenceTransformer) -> int:
    """The position of a text's first token; RoBERTa counts from the padding index on."""
    for module in model[0].modules():
        padding = getattr(module, "padding_idx", None)
        table = getattr(module, "position_embeddings", None)
        if isinstance(padding, int) and isinstance(table, torch.nn.Embedding):
            return padding + 1
    return 0


def _rust_tokenizer(first: Any) -> RustTokenizer:
    """Raise `ModelUnavailable` unless the first module reads plain texts through such a one."""
    tokenizer: Any = getattr(first, "tokenizer", None)
    rust: RustTokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    # A processor other than the tokenizer is one for images or sounds, with its own chats.
    reads_media = _is_chat(first) and first.processor is not tokenizer
    if type(first) is not Transformer or reads_media or rust is None:
        raise ModelUnavailable(
            f"a model that begins with {type(first).__name__} and tokenizes with "
            f"{type(tokenizer).__name__} is not one that embedq can run"
        )
    return rust


def _is_chat(first: Any) -> bool:
    return "message" in getattr(first, "modality_config", ())


def _default_prompt(model: SentenceTransformer) -> str | None:
    prompt: str | None = model.prompts.get(model.default_prompt_name or "")
    return prompt


def _rules_of_table(model: SentenceTransformer, rust: RustTokenizer) -> TokenRules:
    """Rules of a table of token vectors."""
    own = rust.truncation or {}
    return TokenRules(
        limit=own.get("max_length"),
        truncation_side=own.get("direction", "right"),
        add_special_tokens=False,
        default_prompt=_default_prompt(model),
        accepts_empty=True,
    )


def _check_call_options(first: Transformer) -> None:
    """Raise `ModelUnavailable` if the model changes how its tokenizer is called."""
    options = first.processing_kwargs
    unknown = _CALL_OPTIONS & {*options, *options.get("chat_template", {})}
    if unknown:
        raise ModelUnavailable(
            f"sentence_bert_config.json has processing_kwargs that embedq does not apply: "
            f"{', '.join(sorted(unknown))}"
        )


def _limit(model: SentenceTransformer) -> int | None:
    """The limit in tokens: the tokenizer's, but not more than the number of positions."""
    stated = model.max_seq_length
    limit = int(stated) if stated is not None and stated < _NO_LIMIT else None
    offset = position_offset(model)
    positions = getattr(model.config, "max_position_embeddings", None)
    if offset and positions:
        limit = min(limit or positions, positions - offset)
    return limit
