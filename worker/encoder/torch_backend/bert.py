"""The layers of BERT and its closest relatives, for packed batches on an x86 CPU.

The computation is that of `BertModel` in transformers: post-norm blocks of attention and a GELU
feed-forward layer. It needs fewer operations between two matrix products. Queries, keys and values
are one product. Its kernel also adds the bias, GELU and the residual (see `onednn`). Attention
runs for all texts of one length together, directly on the rows of the batch. It reads a little
beyond the end of a text if that is faster. Rows of padding at the end of the batch keep the number
of different row counts small.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import embedding, layer_norm, pad, scaled_dot_product_attention
from transformers import BertModel, RobertaModel, XLMRobertaModel

from worker.encoder.layout import Group, PackedBatch
from worker.encoder.packing import few_sizes
from worker.encoder.token_rules import position_offset
from worker.encoder.torch_backend import onednn
from worker.encoder.torch_backend.onednn import OneDnnLinear

_RELATIVES = (BertModel, RobertaModel, XLMRobertaModel)

#: The kernels of attention are about twice as fast per token if the length of the texts is a
#: multiple of this. If at most half of that is missing, a text is computed together with the rows
#: after it, which a mask hides.
_STRIDE = 16


def supports(model: SentenceTransformer) -> bool:
    """Whether `BertLayers` can run this model, in its number format, on this machine."""
    bert: Any = model.transformers_model
    return (
        onednn.available()
        and model.device.type == "cpu"
        and type(bert) in _RELATIVES
        and model.dtype == torch.float32
        and bert.config.hidden_act == "gelu"
        and not bert.config.is_decoder
    )


class BertLayers:
    """Token vectors of a model's packed batches; several threads may call it at once.

    The batches' groups hold texts of one length each. For models that `supports` accepts; `paths`
    compares the vectors with the library's. Raises `NotImplementedError` if a layer is not the
    original one.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        bert: Any = model.transformers_model
        tables = bert.embeddings
        self._words = tables.word_embeddings.weight.detach()
        # Every token is of the first type.
        first_type = tables.token_type_embeddings.weight[0]
        self._positions = (tables.position_embeddings.weight + first_type).detach()
        self._offset = position_offset(model)
        self._norm = _Norm.of(tables.LayerNorm)
        self._layers = [_Layer.of(layer) for layer in bert.encoder.layer]
        self._heads = int(bert.config.num_attention_heads)

    def __call__(self, packed: PackedBatch) -> torch.Tensor:
        """Vectors of a batch's tokens, float32 (T, size)."""
        tokens = self._run(packed, stretched=True)
        if not tokens.sum().isfinite():
            # The mask multiplies by 0, which removes a number but not NaN.
            tokens = self._run(packed, stretched=False)
        return tokens

    def _run(self, packed: PackedBatch, *, stretched: bool) -> torch.Tensor:
        tokens = packed.ids.shape[1]
        # Any token, since its row changes no vector.
        more = (0, few_sizes(tokens) - tokens)
        ids, positions = pad(packed.ids[0], more), pad(packed.positions[0], more)
        rows = embedding(ids, self._words)
        rows = self._norm(rows.add_(embedding(positions + self._offset, self._positions)))
        attended = torch.zeros_like(rows)
        groups = [
            (group, _mask(group, len(rows)) if stretched else None) for group in packed.groups
        ]
        for layer in self._layers:
            projected = layer.project(rows)
            for group, mask in groups:
                self._attend(projected, group, mask, attended)
            rows = layer.after_attention(layer.attended.plus(attended, rows))
            rows = layer.after_feed_forward(layer.narrows.plus(layer.widens.gelu(rows), rows))
        return rows[:tokens]

    def _attend(
        self, projected: torch.Tensor, group: Group, mask: torch.Tensor | None, out: torch.Tensor
    ) -> None:
        """Attention inside each text, from queries, keys and values (R, 3 * size) to (R, size).

        `mask`: see `_mask`; its size is the number of keys.
        """
        heads, width, pace = self._heads, out.shape[1], projected.shape[1]
        size, length = width // heads, group.length
        reach = length if mask is None else mask.shape[-1]
        shape = (3, group.texts, heads, reach, size)
        steps = (width, length * pace, size, pace, 1)
        query, key, value = projected.as_strided(shape, steps, group.start * pace).unbind()
        seen = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        rows = out[group.start : group.stop].view(group.texts, length, heads, size)
        rows.copy_(seen[:, :, :length].transpose(1, 2))


def _mask(group: Group, rows: int) -> torch.Tensor | None:
    """Terms to add to each key's score if a group's texts include the rows after them.

    Float32 (1, 1, reach, reach), 0 for the text's own rows and -inf for the others. None if the
    texts do not include other rows, as in a batch with too few `rows`.
    """
    length = group.length
    missing = -length % _STRIDE
    if not 0 < missing <= _STRIDE // 2 or group.stop + missing > rows:
        return None
    scores = torch.zeros(length + missing)
    scores[length:] = -torch.inf
    return scores.expand(1, 1, length + missing, length + missing)


class _Layer(NamedTuple):
    project: OneDnnLinear
    attended: OneDnnLinear
    after_attention: _Norm
    widens: OneDnnLinear
    narrows: OneDnnLinear
    after_feed_forward: _Norm

    @classmethod
    def of(cls, layer: Any) -> _Layer:
        attention, output = layer.attention.self, layer.attention.output
        return cls(
            OneDnnLinear(attention.query, attention.key, attention.value),
            OneDnnLinear(output.dense),
            _Norm.of(output.LayerNorm),
            OneDnnLinear(layer.intermediate.dense),
            OneDnnLinear(layer.output.dense),
            _Norm.of(layer.output.LayerNorm),
        )


class _Norm(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    @classmethod
    def of(cls, norm: Any) -> _Norm:
        return cls(norm.weight.detach(), norm.bias.detach(), norm.eps)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return layer_norm(rows, self.weight.shape, self.weight, self.bias, self.epsilon)
