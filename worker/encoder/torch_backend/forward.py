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
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from worker.encoder.attention import PACKED_ATTENTION, attending_to
from worker.encoder.kinds import kind_of
from worker.encoder.layout import PackedBatch, pack
from worker.encoder.library import attention_of, set_attention
from worker.encoder.packing import GroupCost
from worker.encoder.rectangles import Rectangle, rectangles
from worker.encoder.token_rules import position_offset, takes_token_types
from worker.encoder.tokens import TokenBlock

#: An attention group costs as much as this many tokens in addition to its cells.
GROUP_COST = GroupCost(fixed=48.0)
#: Only texts of one length share a group.
ONE_LENGTH = GroupCost(fixed=0.0)
#: A padded batch costs as much as this many tokens in addition to its cells.
PADDED_COST = GroupCost(fixed=96.0, knee=512.0)

#: A transformer over packed batches: vectors of a batch's tokens, (T, size). Any thread.
Layers = Callable[[PackedBatch], torch.Tensor]


class ForwardPass(Protocol):
    """A way to run a model, in inference mode; several threads may call it at once."""

    @property
    def packed(self) -> bool:
        """Whether a batch runs without padding."""

    @property
    def padding(self) -> int:
        """Positions of all batches so far that held padding."""

    def __call__(self, batch: TokenBlock) -> NDArray[np.float32]:
        """Vectors of a batch of texts of one token or more, float32 (n, size)."""


class PackedForward:
    """Runs a transformer over all tokens of a batch at once; see `attention`.

    `cost`: how to group texts for attention, None for one variable-length kernel. `layers`: makes
    the layers that run in place of the transformer, `BertLayers` or `OwnLayers`. Raises
    `NotImplementedError` if the model cannot run this way. `paths` compares the vectors with the
    library's.
    """

    packed = True
    padding = 0

    def __init__(
        self,
        model: SentenceTransformer,
        cost: GroupCost | None,
        layers: Callable[[SentenceTransformer], Layers] | None = None,
    ) -> None:
        head = kind_of(model).head
        if type(model[0]) is not Transformer or head is None:
            raise NotImplementedError("its first module is not a transformer")
        self._head = head(model)
        self._layers = (layers or OwnLayers)(model)
        self._device = model.device
        self._cost = cost

    def __call__(self, batch: TokenBlock) -> NDArray[np.float32]:
        packed = pack(batch, self._cost, self._device)
        return _in_order(self._head(self._layers(packed), packed), packed.order)


class OwnLayers:
    """The model's own transformer, with attention over packed batches."""

    def __init__(self, model: SentenceTransformer) -> None:
        set_attention(model, PACKED_ATTENTION)
        if attention_of(model) != PACKED_ATTENTION:
            raise NotImplementedError("its attention is its own")
        self._transformer = model[0]
        self._takes_types = takes_token_types(model)
        self._position_offset = position_offset(model)

    def __call__(self, packed: PackedBatch) -> torch.Tensor:
        """Vectors of a batch's tokens, (T, size)."""
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
        self._output = kind_of(model).output
        self._pad_id = model.tokenizer.pad_token_id or 0
        self._takes_types = takes_token_types(model)
        self._device = model.device

    def __call__(self, batch: TokenBlock) -> NDArray[np.float32]:
        parts = list(rectangles(batch, PADDED_COST, self._pad_id))
        with self._counting:
            self.padding += sum(part.padding for part in parts)
        vectors = torch.cat([self._vectors(part) for part in parts])
        order = np.concatenate([part.texts for part in parts])
        return _in_order(vectors[:, : self._model.truncate_dim], order)

    def _vectors(self, part: Rectangle) -> torch.Tensor:
        features: dict[str, Any] = {
            "input_ids": torch.from_numpy(part.ids).to(self._device),
            "attention_mask": torch.from_numpy(part.real.astype(np.int64)).to(self._device),
        }
        if self._takes_types:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        if part.skip:
            features["prompt_length"] = part.skip
        vectors: torch.Tensor = self._model(features)[self._output]
        return vectors


class StaticForward:
    """Runs a table of token vectors, which has no attention and needs no padding."""

    packed = True
    padding = 0

    def __init__(self, model: SentenceTransformer) -> None:
        if type(model[0]) is not StaticEmbedding:
            raise NotImplementedError("its first module is not a table of token vectors")
        self._model = model
        self._output = kind_of(model).output
        self._device = model.device

    def __call__(self, batch: TokenBlock) -> NDArray[np.float32]:
        features = {
            "input_ids": torch.from_numpy(batch.ids.astype(np.int64)).to(self._device),
            "offsets": torch.from_numpy(batch.offsets[:-1]).to(self._device),
        }
        vectors = self._model(features)[self._output][:, : self._model.truncate_dim]
        return np.ascontiguousarray(vectors.float().cpu().numpy())


def _in_order(vectors: torch.Tensor, order: NDArray[np.int64]) -> NDArray[np.float32]:
    """Move row i to `order[i]`; returns float32 (n, size) in the memory of this process."""
    out = np.empty(vectors.shape, dtype=np.float32)
    out[order] = vectors.float().cpu().numpy()
    return out
