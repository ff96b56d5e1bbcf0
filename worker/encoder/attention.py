"""Attention over packed batches, plugged into any model that uses transformers' interface.

Registered under one name with `transformers.AttentionInterface`. No mask function is registered
with it, so that models make no mask and the attention function gets what flash attention gets:
packed queries, whether the layer is causal, and its sliding window.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from worker.encoder.layout import Group, PackedBatch

#: The name of this attention in a transformers configuration.
PACKED_ATTENTION = "embedq_packed"

_current: ContextVar[PackedBatch] = ContextVar("packed batch in this forward pass")


@contextmanager
def attending_to(batch: PackedBatch) -> Iterator[None]:
    """Forward passes of this thread inside the block are of `batch`."""
    token = _current.set(batch)
    try:
        yield
    finally:
        _current.reset(token)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **ignored: Any,
) -> tuple[torch.Tensor, None]:
    """Attention inside each text of the current batch.

    `query` (1, heads, T, size), `key` and `value` likewise with as many heads or a divisor of
    them. Returns (1, T, heads, size). Raises `NotImplementedError` for what it does not know;
    the model is then found unfit for packing when it is loaded.
    """
    if attention_mask is not None or dropout or softcap or s_aux is not None:
        raise NotImplementedError("attention with a mask of its own, dropout, softcap or sinks")
    if position_bias is not None:
        raise NotImplementedError("attention with a position bias")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    batch = _current.get()
    if not batch.groups:
        return _varlen(batch, query, key, value, scaling, causal, sliding_window), None
    if len(batch.groups) == 1:
        only = batch.groups[0]
        return _attend(only, query, key, value, scaling, causal, sliding_window)[None], None
    parts = [
        _attend(group, query, key, value, scaling, causal, sliding_window) for group in batch.groups
    ]
    return torch.cat(parts)[None], None


def _attend(
    group: Group,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """Attention of one group; returns (stop - start, heads, size)."""
    mask = group.mask(causal, window)
    out = scaled_dot_product_attention(
        _rectangle(group, query),
        _rectangle(group, key),
        _rectangle(group, value),
        attn_mask=mask,
        is_causal=causal and mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    rows = out.transpose(1, 2).reshape(group.texts * group.length, *out.shape[1::2])
    return rows if group.real is None else rows.index_select(0, group.real)


def _rectangle(group: Group, packed: torch.Tensor) -> torch.Tensor:
    """The tokens of a group, (texts, heads, length, size), from (1, heads, T, size)."""
    rows = packed[0, :, group.start : group.stop].transpose(0, 1)
    if group.padded is not None:
        rows = rows.index_select(0, group.padded)
    return rows.unflatten(0, (group.texts, group.length)).transpose(1, 2)


def _varlen(
    batch: PackedBatch,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """Attention of the whole batch in one kernel, for 16-bit numbers on CUDA.

    Its window counts the keys to the left and right of a query, -1 for all of them.
    """
    reach = -1 if window is None else window - 1
    return varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        batch.offsets,
        batch.offsets,
        batch.longest,
        batch.longest,
        scale=scaling,
        window_size=(reach, 0 if causal else reach),
        enable_gqa=query.shape[1] != key.shape[1],
    )[None]


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
