"""Attention over packed batches, for any model that uses transformers' interface.

Registered under one name with `transformers.AttentionInterface`. Without a registered mask function
models make no mask. The attention function then gets the arguments of flash attention: packed
queries, whether the layer is causal, and its sliding window.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from worker.encoder.layout import Group, PackedBatch

#: The name of this attention in a transformers configuration.
PACKED_ATTENTION = "embedq_packed"

#: Arguments of transformers' interface that change the result: soft capping, sinks, biases.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")

_current: ContextVar[PackedBatch] = ContextVar("packed batch in this forward pass")


@contextmanager
def attending_to(batch: PackedBatch) -> Iterator[None]:
    """Use `batch` in this thread's forward passes inside the block."""
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
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention inside each text of the current batch.

    `query` (1, heads, T, size), `key` and `value` likewise with as many heads or a divisor of
    them. Returns (1, T, heads, size). Raises `NotImplementedError` for unknown arguments; the model
    is then loaded without packing.
    """
    used = [name for name in _UNSUPPORTED if others.get(name) is not None]
    if attention_mask is not None or others.get("dropout") or used:
        raise NotImplementedError(f"attention with {used[0] if used else 'a mask or dropout'}")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    rule = _Rule(scaling, causal, sliding_window)
    batch = _current.get()
    if not batch.groups:
        return _varlen(batch, rule, query, key, value), None
    parts = [_attend(group, rule, query, key, value) for group in batch.groups]
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


@dataclass(frozen=True, slots=True)
class _Rule:
    """The keys that a layer's queries attend to: earlier ones or all, within `window` or all."""

    scaling: float | None
    causal: bool
    window: int | None


def _attend(
    group: Group, rule: _Rule, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Attention of one group; returns (stop - start, heads, size)."""
    mask = group.mask(rule.causal, rule.window)
    out = scaled_dot_product_attention(
        _rectangle(group, query),
        _rectangle(group, key),
        _rectangle(group, value),
        attn_mask=mask,
        is_causal=rule.causal and mask is None,
        scale=rule.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    rows = out.transpose(1, 2).flatten(0, 1)
    return rows if group.real is None else rows.index_select(0, group.real)


def _rectangle(group: Group, packed: torch.Tensor) -> torch.Tensor:
    """The tokens of a group, (texts, heads, length, size), from (1, heads, T, size)."""
    rows = packed[0, :, group.start : group.stop].transpose(0, 1)
    if group.padded is not None:
        rows = rows.index_select(0, group.padded)
    return rows.view(group.texts, group.length, *rows.shape[1:]).transpose(1, 2)


def _varlen(
    batch: PackedBatch, rule: _Rule, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Attention of the whole batch in one kernel: flash attention, for 16-bit numbers on CUDA.

    `torch.nn.attention.varlen`, from torch 2.10, calls the same operator, but accepts a scale and a
    window from 2.11 and shared keys from 2.12. The operator accepts them from 2.6. Its window
    counts the keys to the left and right of a query, -1 for all keys.
    """
    reach = -1 if rule.window is None else rule.window - 1
    attended: torch.Tensor = torch.ops.aten._flash_attention_forward(  # noqa: SLF001
        query.squeeze(0).transpose(0, 1),
        key.squeeze(0).transpose(0, 1),
        value.squeeze(0).transpose(0, 1),
        batch.offsets,
        batch.offsets,
        batch.longest,
        batch.longest,
        0.0,
        rule.causal,
        False,
        scale=rule.scaling,
        window_size_left=reach,
        window_size_right=0 if rule.causal else reach,
    )[0]
    return attended.unsqueeze(0)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
