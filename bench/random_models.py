"""Models of real sizes with random weights, if no trained ones are available: speed is the same."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from bench.texts import texts

VOCABULARY = 30_522
MAX_TOKENS = 512
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
#: Number of texts that the vocabulary is trained on.
_TEXTS = 4_000


def save_bert(folder: Path, *, layers: int, hidden: int, heads: int) -> Path:
    """Save a BERT of these sizes with mean pooling in `folder`; return its path."""
    parts, whole = folder / "parts", folder / "model"
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=MAX_TOKENS,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(parts)
    _tokenizer().save_pretrained(parts)
    SentenceTransformer(
        modules=[Transformer(str(parts)), Pooling(hidden, pooling_mode="mean"), Normalize()],
        device="cpu",
    ).save(str(whole), create_model_card=False)
    return whole


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=_SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(texts("mixed", _TEXTS), trainer)
    sep, cls = ((name, _SPECIAL.index(name)) for name in ("[SEP]", "[CLS]"))
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_TOKENS,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
