"""Dense models: one vector for each text, pooled from its tokens."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from worker.encoder.kinds import Kind
from worker.encoder.layout import PackedBatch
from worker.encoder.pooling import packed_pooling


class DenseHead:
    """Pooling and the modules after it."""

    def __init__(self, model: SentenceTransformer) -> None:
        """Raise `NotImplementedError` unless `model` is a transformer followed by pooling."""
        pooling, *self._rest = list(model.children())[1:] or [None]
        if type(pooling) is not Pooling:
            raise NotImplementedError("it is not a transformer followed by pooling")
        modes: Any = pooling.pooling_mode
        self._pool = packed_pooling((modes,) if isinstance(modes, str) else tuple(modes))
        self._dimensions = model.truncate_dim

    def __call__(self, tokens: torch.Tensor, packed: PackedBatch) -> torch.Tensor:
        """Vectors of a batch's texts, (n, dimensions)."""
        features = {KIND.output: self._pool(tokens, packed)}
        for module in self._rest:
            features = module(features)
        return features[KIND.output][:, : self._dimensions]


KIND = Kind(
    name="dense",
    model_types=("SentenceTransformer",),
    description="a dense model (kind dense), which gives one vector for each text",
    output="sentence_embedding",
    head=DenseHead,
)
