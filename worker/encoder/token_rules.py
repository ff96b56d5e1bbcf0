"""How a sentence-transformers model wants its texts tokenised, read from the loaded model."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer as RustTokenizer

from worker.contract.errors import ModelUnavailable
from worker.encoder.chats import ChatTemplate
from worker.encoder.tokenizer import TokenRules

#: From here on a tokenizer's "maximum" means that there is none.
_NO_LIMIT = 10**9

#: Parts of a model's `processing_kwargs` that say how its tokenizer is called.
_CALL_OPTIONS = frozenset(
    ("text", "common", "padding", "truncation", "max_length", "restore_suffix", "tokenizer_kwargs")
)


def token_rules(model: SentenceTransformer) -> tuple[TokenRules, RustTokenizer]:
    """The rules of `model`, and the Rust tokenizer that they are for.

    Raises `ModelUnavailable` where it does not take plain texts through such a tokenizer.
    """
    first = model[0]
    prompt = model.prompts.get(model.default_prompt_name or "")
    if isinstance(first, StaticEmbedding):
        own = first.tokenizer.truncation or {}
        static = TokenRules(
            limit=own.get("max_length"),
            truncation_side=own.get("direction", "right"),
            add_special_tokens=False,
            default_prompt=prompt,
            takes_nothing=True,
        )
        return static, first.tokenizer
    tokenizer: Any = getattr(first, "tokenizer", None)
    rust: RustTokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    modalities: Any = getattr(first, "modality_config", ())
    is_chat = "message" in modalities
    # A processor besides the tokenizer is one for images or sounds, with chats of its own.
    takes_texts = type(first) is Transformer and not (is_chat and first.processor is not tokenizer)
    if not takes_texts or rust is None:
        raise ModelUnavailable(
            f"a model that begins with {type(first).__name__} and tokenises with "
            f"{type(tokenizer).__name__} is not one that embedq can run"
        )
    _check_call_options(first)
    rules = TokenRules(
        limit=_limit(model),
        truncation_side=tokenizer.truncation_side,
        # A chat template adds its own, and pooling covers its prompts.
        add_special_tokens=not is_chat,
        pool_prompt=is_chat
        or all(part.include_prompt for part in model if isinstance(part, Pooling)),
        default_prompt=prompt,
        special_ids=frozenset(tokenizer.all_special_ids),
        template=ChatTemplate(first, rust) if is_chat else None,
    )
    return rules, rust


def takes_token_types(model: SentenceTransformer) -> bool:
    """Whether the library hands `token_type_ids` to the model."""
    return "token_type_ids" in model.tokenizer.model_input_names


def position_offset(model: SentenceTransformer) -> int:
    """The position of a text's first token: past the padding index where RoBERTa counts so."""
    for module in model[0].modules():
        padding = getattr(module, "padding_idx", None)
        table = getattr(module, "position_embeddings", None)
        if isinstance(padding, int) and isinstance(table, torch.nn.Embedding):
            return padding + 1
    return 0


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
    """The limit in tokens: what the tokenizer says, and no more than there are positions."""
    stated = model.max_seq_length
    limit = int(stated) if stated is not None and stated < _NO_LIMIT else None
    offset = position_offset(model)
    positions = getattr(model.config, "max_position_embeddings", None)
    if offset and positions:
        limit = min(limit or positions, positions - offset)
    return limit
