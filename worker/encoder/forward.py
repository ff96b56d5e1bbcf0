"""One forward pass over a batch: packed into one sequence, or padded into rectangles."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

from worker.encoder.attention import PACKED_ATTENTION, attending_to
from worker.encoder.layout import PackedBatch, pack
from worker.encoder.library import attention_of, set_attention
from worker.encoder.packing import GroupCost
from worker.encoder.pooling import packed_pooling
from worker.encoder.rectangles import Rectangle, rectangles
from worker.encoder.token_rules import position_offset, takes_token_types
from worker.encoder.tokens import TokenBlock

#: An attention group costs as much as this many tokens on top of its cells.
GROUP_COST = GroupCost(fixed=48.0)
#: Only texts of one length share a group.
ONE_LENGTH = GroupCost(fixed=0.0)
#: A padded batch costs as much as this many tokens on top of its cells.
PADDED_COST = GroupCost(fixed=96.0, knee=512.0)


class Forward(Protocol):
    """A way to run a model, under inference mode; several threads may call it at once."""

    @property
    def packed(self) -> bool:
        """Whether a batch is run without padding."""

    @property
    def padding(self) -> int:
        """Positions of all batches so far that held padding."""

    def __call__(self, batch: TokenBlock) -> NDArray[np.float32]:
        """Vectors of a batch of texts of one token or more, float32 (n, size)."""


class Layers(Protocol):
    """A transformer over packed batches; several threads may call it at once."""

    def __call__(self, packed: PackedBatch) -> torch.Tensor:
        """Vectors of a batch's tokens (T, size)."""


class PackedForward:
    """Runs a transformer over all tokens of a batch at once; see `attention` for how.

    `cost`: how to group texts for attention, None for one variable-length kernel. Raises
    `NotImplementedError` where the model cannot be run so; that it can is no promise that the
    vectors are right, which is for `probe` to find out. `layers`: what runs in place of the
    transformer; `BertLayers` or `ItsOwnLayers`.
    """

    packed = True
    padding = 0

    def __init__(
        self,
        model: SentenceTransformer,
        cost: GroupCost | None,
        layers: Callable[[SentenceTransformer], Layers] | None = None,
    ) -> None:
        transformer, pooling, *self._rest = model.children()
        if type(transformer) is not Transformer or type(pooling) is not Pooling:
            raise NotImplementedError("it is not a transformer followed by pooling")
        modes: Any = pooling.pooling_mode
        self._pool = packed_pooling((modes,) if isinstance(modes, str) else tuple(modes))
        self._layers = (layers or ItsOwnLayers)(model)
        self._device = model.device
        self._truncate_dim = model.truncate_dim
        self._cost = cost

    def __call__(self, batch: TokenBlock) -> NDArray[np.float32]:
        packed = pack(batch, self._cost, self._device)
        features = {"sentence_embedding": self._pool(self._layers(packed), packed)}
        for module in self._rest:
            features = module(features)
        vectors = features["sentence_embedding"][:, : self._truncate_dim]
        out = np.empty(vectors.shape, dtype=np.float32)
        out[packed.order] = vectors.float().cpu().numpy()
        return out


class ItsOwnLayers:
    """The transformer as it was loaded, with attention that knows of packed batches."""

    def __init__(self, model: SentenceTransformer) -> None:
        set_attention(model, PACKED_ATTENTION)
        if attention_of(model) != PACKED_ATTENTION:
            raise NotImplementedError("its attention is its own")
        self._transformer = model[0]
        self._takes_types = takes_token_types(model)
        self._position_offset = position_offset(model)

    def __call__(self, packed: PackedBatch) -> torch.Tensor:
        """Vectors of a batch's tokens (T, size)."""
        features: dict[str, Any] = {"input_ids": packed.ids, "position_ids": packed.positions}
        if self._position_offset:
            features["position_ids"] = packed.positions + self._position_offset
        if self._takes_types:
            features["token_type_ids"] = torch.zeros_like(packed.ids)
        with attending_to(packed):
            tokens: torch.Tensor = self._transformer(features)["token_embeddings"][0]
        return tokens


class PaddedForward:
    """Runs any model over rectangles of texts of similar length, padded on the right."""

    packed = False

    def __init__(self, model: SentenceTransformer) -> None:
        if type(model[0]) is not Transformer:
            raise NotImplementedError("its first module is not a transformer")
        self.padding = 0
        self._counting = threading.Lock()
        self._model = model
        self._pad_id = model.tokenizer.pad_token_id or 0
        self._takes_types = takes_token_types(model)
        self._device = model.device
        self._truncate_dim = model.truncate_dim

    def __call__(self, batch: TokenBlock) -> NDArray[np.float32]:
        parts = list(rectangles(batch, PADDED_COST, self._pad_id))
        vectors = torch.cat([self._vectors(part) for part in parts])[:, : self._truncate_dim]
        out = np.empty(vectors.shape, dtype=np.float32)
        out[np.concatenate([part.texts for part in parts])] = vectors.float().cpu().numpy()
        return out

    def _vectors(self, part: Rectangle) -> torch.Tensor:
        with self._counting:
            self.padding += part.padding
        features: dict[str, Any] = {
            "input_ids": torch.from_numpy(part.ids).to(self._device),
            "attention_mask": torch.from_numpy(part.real.astype(np.int64)).to(self._device),
        }
        if self._takes_types:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        if part.skip:
            features["prompt_length"] = part.skip
        vectors: torch.Tensor = self._model(features)["sentence_embedding"]
        return vectors


class StaticForward:
    """Runs a table of token vectors, which has no attention and needs no padding."""

    packed = True
    padding = 0

    def __init__(self, model: SentenceTransformer) -> None:
        if type(model[0]) is not StaticEmbedding:
            raise NotImplementedError("its first module is not a table of token vectors")
        self._model = model
        self._device = model.device
        self._truncate_dim = model.truncate_dim

    def __call__(self, batch: TokenBlock) -> NDArray[np.float32]:
        features = {
            "input_ids": torch.from_numpy(batch.ids.astype(np.int64)).to(self._device),
            "offsets": torch.from_numpy(batch.offsets[:-1]).to(self._device),
        }
        vectors = self._model(features)["sentence_embedding"][:, : self._truncate_dim]
        return np.ascontiguousarray(vectors.float().cpu().numpy())
