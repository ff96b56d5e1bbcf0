"""Attention over packed batches, in groups and in one kernel, against attention over each text."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from worker.encoder.attention import attending_to, packed_attention
from worker.encoder.layout import pack
from worker.encoder.packing import GroupCost
from worker.encoder.tokens import TokenBlock

HEADS, SIZE = 4, 8
LENGTHS = (5, 1, 12, 5, 30, 7, 12, 31)

#: From one group for each length to one for all.
costs = pytest.mark.parametrize("fixed", [0.0, 20.0, 1e9], ids=["parted", "some", "one group"])
windows = pytest.mark.parametrize("window", [None, 1, 4, 12, 100])
causality = pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
key_heads = pytest.mark.parametrize("key_heads", [HEADS, 2], ids=["own keys", "shared keys"])


def a_batch() -> TokenBlock:
    offsets = np.concatenate(([0], np.cumsum(LENGTHS)))
    count = len(LENGTHS)
    return TokenBlock(
        np.arange(offsets[-1], dtype=np.int32),
        offsets.astype(np.int64),
        np.zeros(count, dtype=np.int32),
        np.zeros(count, dtype=np.bool_),
    )


def tensors(key_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    total = sum(LENGTHS)
    shapes = [(1, HEADS, total, SIZE)] + [(1, key_heads, total, SIZE)] * 2
    query, key, value = (torch.randn(shape) for shape in shapes)
    return query, key, value


def text_by_text(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: list[int],
    *,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """(1, T, heads, size), each text by itself under an explicit mask."""
    parts = []
    for start, stop in pairwise(offsets):
        at = torch.arange(stop - start)
        distance = at[:, None] - at[None, :]
        seen = torch.ones_like(distance, dtype=torch.bool)
        if causal:
            seen &= distance >= 0
        if window is not None:
            seen &= distance.abs() < window
        q, k, v = (tensor[:, :, start:stop] for tensor in (query, key, value))
        k, v = (t.repeat_interleave(HEADS // key.shape[1], dim=1) for t in (k, v))
        parts.append(scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.3))
    return torch.cat(parts, dim=2).transpose(1, 2)


@costs
@windows
@causality
@key_heads
def test_groups_attend_inside_each_text(
    fixed: float, window: int | None, causal: bool, key_heads: int
) -> None:
    batch = pack(a_batch(), GroupCost(fixed), torch.device("cpu"))
    query, key, value = tensors(key_heads)
    layer = SimpleNamespace(is_causal=causal)
    with attending_to(batch):
        for _layer in range(2):
            found, _ = packed_attention(
                layer,  # type: ignore[arg-type]
                *(query, key, value, None),
                scaling=0.3,
                sliding_window=window,
            )
    want = text_by_text(query, key, value, batch.offsets.tolist(), causal=causal, window=window)
    torch.testing.assert_close(found, want, atol=1e-6, rtol=0)


@windows
@causality
@key_heads
def test_one_kernel_attends_inside_each_text(
    window: int | None, causal: bool, key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel runs on CUDA only; a stand-in has the same arguments and the same meaning."""

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        key_starts: torch.Tensor,
        longest: int,
        longest_key: int,
        dropout: float,
        is_causal: bool,
        return_debug_mask: bool,
        *,
        scale: float,
        window_size_left: int,
        window_size_right: int,
    ) -> tuple[torch.Tensor, ...]:
        assert starts.dtype == key_starts.dtype == torch.int32
        assert longest == longest_key == max(LENGTHS)
        assert not dropout
        assert not return_debug_mask
        left, right = window_size_left, window_size_right
        assert right in (0, left)
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        assert scale == 0.3
        window = None if left < 0 else left + 1
        assert right == 0 or not is_causal
        want = text_by_text(q, k, v, starts.tolist(), causal=is_causal, window=window)
        return want[0], *[torch.empty(0)] * 4

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", kernel)
    batch = pack(a_batch(), None, torch.device("cpu"))
    query, key, value = tensors(key_heads)
    with attending_to(batch):
        found, _ = packed_attention(
            SimpleNamespace(is_causal=causal),  # type: ignore[arg-type]
            *(query, key, value, None),
            scaling=0.3,
            sliding_window=window,
        )
    want = text_by_text(query, key, value, batch.offsets.tolist(), causal=causal, window=window)
    torch.testing.assert_close(found, want, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "extra",
    [
        {"softcap": 30.0},
        {"dropout": 0.1},
        {"position_bias": torch.ones(1)},
        {"s_aux": torch.ones(1)},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_attention_that_it_does_not_know_is_refused(extra: dict[str, object]) -> None:
    batch = pack(a_batch(), GroupCost(1.0), torch.device("cpu"))
    with attending_to(batch), pytest.raises(NotImplementedError):
        packed_attention(torch.nn.Identity(), *tensors(HEADS), None, **extra)  # type: ignore[arg-type]


def test_a_packed_batch_keeps_every_token_next_to_its_own() -> None:
    block = a_batch()
    batch = pack(block, GroupCost(1.0), torch.device("cpu"))
    ids, offsets = batch.ids[0].tolist(), batch.offsets.tolist()
    for place, text in enumerate(batch.order):
        here = slice(offsets[place], offsets[place + 1])
        start, stop = block.offsets[text : text + 2]
        assert ids[here] == block.ids[start:stop].tolist()
        assert batch.positions[0, here].tolist() == list(range(stop - start))
    assert sorted(batch.order.tolist()) == list(range(len(LENGTHS)))
