"""The layers of BERT and its closest relatives, written for packed batches on an x86 CPU.

The computation is that of `BertModel` in transformers: post-norm blocks of attention and a GELU
feed-forward layer. What differs is how little stands between two matrix products: queries, keys
and values are one product, its bias, GELU and the residual are added by the kernel that makes it
(oneDNN's post-operations). Attention is computed for all texts of one length together, straight
from and into the rows of the batch, where it pays a little beyond each text's end; the batch has
rows of padding at its own end, so that few numbers of rows occur.
"""

from __future__ import annotations

import platform
from typing import Any, NamedTuple, cast

import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import embedding, layer_norm, pad, scaled_dot_product_attention
from transformers import BertModel, RobertaModel, XLMRobertaModel

from worker.encoder.layout import Group, PackedBatch
from worker.encoder.packing import few_sizes
from worker.encoder.token_rules import position_offset

_RELATIVES = (BertModel, RobertaModel, XLMRobertaModel)

#: The kernels of attention compute texts whose length is a multiple of this about twice as fast as
#: others, token for token. So where no more than half of that is missing, a text is taken together
#: with rows that follow it, which a mask keeps out of sight.
_STRIDE = 16


def knows(model: SentenceTransformer) -> bool:
    """Whether `BertLayers` are for this model, in its number format, on this machine."""
    bert: Any = model.transformers_model
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return (
        platform.machine() in ("x86_64", "AMD64")
        and has_onednn
        and model.device.type == "cpu"
        and type(bert) in _RELATIVES
        and model.dtype == torch.float32
        and bert.config.hidden_act == "gelu"
        and not bert.config.is_decoder
    )


class BertLayers:
    """Token vectors of a model's packed batches; several threads may call it at once.

    The batches' groups hold texts of one length each. For models that this module `knows`, which
    is no promise that the vectors are right: that is for `probe` to find out. Raises
    `NotImplementedError` where a layer was replaced by something else.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        bert: Any = model.transformers_model
        tables = bert.embeddings
        self._words = tables.word_embeddings.weight.detach()
        # Every token is of the first type.
        kind = tables.token_type_embeddings.weight[0]
        self._positions = (tables.position_embeddings.weight + kind).detach()
        self._offset = position_offset(model)
        self._norm = _Norm.of(tables.LayerNorm)
        self._layers = [_Layer.of(layer) for layer in bert.encoder.layer]
        self._heads = int(bert.config.num_attention_heads)

    def __call__(self, packed: PackedBatch) -> torch.Tensor:
        """Vectors of a batch's tokens, float32 (T, size)."""
        tokens = self._run(packed, stretched=True)
        if not tokens.sum().isfinite():
            # The mask leaves nothing of a number, but something of what is none.
            tokens = self._run(packed, stretched=False)
        return tokens

    def _run(self, packed: PackedBatch, *, stretched: bool) -> torch.Tensor:
        tokens = packed.ids.shape[1]
        more = (0, few_sizes(tokens) - tokens)  # Any token will do: its row changes no vector.
        ids, positions = pad(packed.ids[0], more), pad(packed.positions[0], more)
        rows = embedding(ids, self._words)
        rows = self._norm(rows.add_(embedding(positions + self._offset, self._positions)))
        attended = torch.zeros_like(rows)
        groups = [
            (group, _mask(group, len(rows)) if stretched else None) for group in packed.groups
        ]
        for layer in self._layers:
            looks = layer.looks(rows)
            for group, mask in groups:
                self._attend(looks, group, mask, attended)
            rows = layer.after_attention(layer.attended.plus(attended, rows))
            rows = layer.after_feed_forward(layer.narrows.plus(layer.widens.gelu(rows), rows))
        return rows[:tokens]

    def _attend(
        self, looks: torch.Tensor, group: Group, mask: torch.Tensor | None, out: torch.Tensor
    ) -> None:
        """Attention inside each text, from queries, keys and values (R, 3 * size) to (R, size).

        `mask` of as many keys as it takes, see `_mask`.
        """
        heads, width, pace = self._heads, out.shape[1], looks.shape[1]
        size, length = width // heads, group.length
        reach = length if mask is None else mask.shape[-1]
        shape = (3, group.texts, heads, reach, size)
        steps = (width, length * pace, size, pace, 1)
        query, key, value = looks.as_strided(shape, steps, group.start * pace).unbind()
        seen = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        rows = out[group.start : group.stop].view(group.texts, length, heads, size)
        rows.copy_(seen[:, :, :length].transpose(1, 2))


def _mask(group: Group, rows: int) -> torch.Tensor | None:
    """What to add to each key's score where a group's texts are taken with rows behind them.

    Float32 (1, 1, reach, reach), 0 for the text's own and -inf for the others; None where a text is
    taken as it is, also where the batch has not `rows` enough.
    """
    length = group.length
    missing = -length % _STRIDE
    if not 0 < missing <= _STRIDE // 2 or group.stop + missing > rows:
        return None
    scores = torch.zeros(length + missing)
    scores[length:] = -torch.inf
    return scores.expand(1, 1, length + missing, length + missing)


class _Layer(NamedTuple):
    looks: _Linear
    attended: _Linear
    after_attention: _Norm
    widens: _Linear
    narrows: _Linear
    after_feed_forward: _Norm

    @classmethod
    def of(cls, layer: Any) -> _Layer:
        attention, output = layer.attention.self, layer.attention.output
        return cls(
            _Linear(attention.query, attention.key, attention.value),
            _Linear(output.dense),
            _Norm.of(output.LayerNorm),
            _Linear(layer.intermediate.dense),
            _Linear(layer.output.dense),
            _Norm.of(layer.output.LayerNorm),
        )


class _Linear:
    """One linear layer, or several of the same rows side by side, laid out for oneDNN."""

    def __init__(self, *layers: torch.nn.Module) -> None:
        if any(type(layer) is not torch.nn.Linear for layer in layers):
            raise NotImplementedError("a linear layer is something else")
        linear = cast("tuple[torch.nn.Linear, ...]", layers)
        weight = torch.cat([layer.weight.detach() for layer in linear])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)  # noqa: SLF001
        self._bias = torch.cat([layer.bias.detach() for layer in linear])

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return self._run(rows, "none")

    def gelu(self, rows: torch.Tensor) -> torch.Tensor:
        return self._run(rows, "gelu")

    def plus(self, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """The layer of `rows`, and `others` added."""
        added = torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001
        return cast("torch.Tensor", added(rows, others, self._weight, self._bias, "add"))

    def _run(self, rows: torch.Tensor, after: str) -> torch.Tensor:
        run = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
        return cast("torch.Tensor", run(rows, self._weight, self._bias, after, [], "none"))


class _Norm(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    @classmethod
    def of(cls, norm: Any) -> _Norm:
        return cls(norm.weight.detach(), norm.bias.detach(), norm.eps)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return layer_norm(rows, self.weight.shape, self.weight, self.bias, self.epsilon)
