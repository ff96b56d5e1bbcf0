"""Tiny sentence-transformers models with random weights, one for each relevant family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
)

HIDDEN = 32
MAX_TOKENS = 64
#: Far larger than in trained models, so that a wrong position or neighbour shows.
WEIGHT_SPREAD = 0.3

WORDS = (
    *("the", "queue", "holds", "texts", "until", "one", "batch", "is", "full", "of"),
    *("them", "and", "model", "runs", "again", "job", "vector", "prompt"),
)


def save(
    folder: Path,
    transformer: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    pooling: str | tuple[str, ...] = "mean",
    include_prompt: bool = True,
    after: tuple[torch.nn.Module, ...] = (Normalize(),),
    prompts: dict[str, str] | None = None,
    default_prompt: str | None = None,
    truncate_dim: int | None = None,
) -> Path:
    """Save a model of these parts in `folder` and return its path."""
    parts, whole = folder / "parts", folder / "model"
    transformer.save_pretrained(parts)
    tokenizer.save_pretrained(parts)
    SentenceTransformer(
        modules=[
            Transformer(str(parts)),
            Pooling(HIDDEN, pooling_mode=pooling, include_prompt=include_prompt),
            *after,
        ],
        prompts=prompts,
        default_prompt_name=default_prompt,
        truncate_dim=truncate_dim,
        device="cpu",
    ).save(str(whole), create_model_card=False)
    return whole


def bert(folder: Path, **parts: Any) -> Path:
    config = BertConfig(**_encoder_sizes(), pad_token_id=0)
    return save(folder, _random(BertModel, config), wordpiece(), **parts)


def roberta(folder: Path, **parts: Any) -> Path:
    sizes = _encoder_sizes() | {"max_position_embeddings": MAX_TOKENS + 2}
    config = RobertaConfig(**sizes, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    return save(folder, _random(RobertaModel, config), byte_level("roberta"), **parts)


def modernbert(folder: Path, **parts: Any) -> Path:
    sizes = _encoder_sizes() | {"num_hidden_layers": 4}
    config = ModernBertConfig(
        **sizes,
        local_attention=8,
        global_attn_every_n_layers=2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )
    return save(folder, _random(ModernBertModel, config), wordpiece(), **parts)


def mpnet(folder: Path, **parts: Any) -> Path:
    sizes = _encoder_sizes() | {"max_position_embeddings": MAX_TOKENS + 2}
    config = MPNetConfig(**sizes, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    return save(folder, _random(MPNetModel, config), byte_level("roberta"), **parts)


def distilbert(folder: Path, **parts: Any) -> Path:
    config = DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=HIDDEN,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=WEIGHT_SPREAD,
        pad_token_id=0,
    )
    return save(folder, _random(DistilBertModel, config), wordpiece(), **parts)


def qwen3(folder: Path, *, chat_template: str | None = None, **parts: Any) -> Path:
    """A causal model with fewer key than query heads; half of its layers see 8 tokens."""
    tokenizer = byte_level("qwen")
    tokenizer.chat_template = chat_template
    sizes = _encoder_sizes() | {"num_hidden_layers": 4}
    config = Qwen3Config(
        **sizes,
        num_key_value_heads=2,
        head_dim=8,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=2,
        pad_token_id=3,
        eos_token_id=3,
    )
    parts = {"pooling": "lasttoken"} | parts
    return save(folder, _random(Qwen3Model, config), tokenizer, **parts)


def static(folder: Path) -> Path:
    """No transformer: the mean of a table's rows."""
    torch.manual_seed(7)
    whole = folder / "model"
    table = StaticEmbedding(wordpiece().backend_tokenizer, embedding_dim=HIDDEN)
    SentenceTransformer(modules=[table], device="cpu").save(str(whole), create_model_card=False)
    return whole


def dense() -> Dense:
    """A layer after pooling that shortens the vectors."""
    torch.manual_seed(11)
    return Dense(HIDDEN, HIDDEN // 2)


def checkpoint(folder: Path, model: type[PreTrainedModel]) -> Path:
    """Save a BERT of the class `model` without the files of sentence-transformers."""
    config = BertConfig(**_encoder_sizes(), pad_token_id=0, num_labels=1)
    _random(model, config).save_pretrained(folder)
    wordpiece().save_pretrained(folder)
    return folder


#: Every family: its name and its factory.
FAMILIES: dict[str, Callable[..., Path]] = {
    "bert": bert,
    "roberta": roberta,
    "modernbert": modernbert,
    "mpnet": mpnet,
    "distilbert": distilbert,
    "qwen3": qwen3,
}


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's tokenizer over a few words and single characters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(code) for code in range(33, 127)]
    pieces = [*special, *WORDS, *characters, *(f"##{piece}" for piece in characters)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    rust = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    rust.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=rust,
        model_max_length=MAX_TOKENS,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def byte_level(family: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: `roberta` closes texts on both sides, `qwen` at the end only."""
    special = ["<s>", "<pad>", "</s>", "<end>", "<mask>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate([*special, *letters])}
    merges = []
    for word in WORDS:
        piece = "Ġ"
        for letter in word:
            merges.append((piece, letter))
            piece += letter
            vocabulary.setdefault(piece, len(vocabulary))
    rust = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges))))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    first, last, pad = ("<s>", "</s>", "<pad>") if family == "roberta" else ("", "<end>", "<end>")
    rust.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}".strip(),
        special_tokens=[(token, vocabulary[token]) for token in (first, last) if token],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=rust,
        model_max_length=MAX_TOKENS,
        padding_side="left" if family == "qwen" else "right",
        pad_token=pad,
        eos_token=last,
        bos_token=first or None,
    )


#: More entries than either tokenizer has.
VOCABULARY = 640


def _encoder_sizes() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": MAX_TOKENS,
        "initializer_range": WEIGHT_SPREAD,
    }


def _random(model: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    torch.manual_seed(3)
    return model(config).eval()
