"""Pooling over packed tokens: every mode of sentence-transformers' `Pooling`, without padding.

Equal to `sentence_transformers.sentence_transformer.modules.Pooling` on each text alone, also if
all tokens of a text belong to a prompt that is not pooled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

from worker.encoder.layout import PackedBatch

PackedPooling = Callable[[torch.Tensor, PackedBatch], torch.Tensor]


def packed_pooling(modes: tuple[str, ...]) -> PackedPooling:
    """Return a function that pools token vectors (T, size) of a batch to (n, len(modes) * size).

    Raises `NotImplementedError` for an unknown mode.
    """
    unknown = set(modes) - set(_MODES)
    if unknown:
        raise NotImplementedError(f"pooling by {', '.join(sorted(unknown))}")
    functions = [_MODES[mode] for mode in modes]
    if len(functions) == 1:
        return functions[0]
    return lambda tokens, batch: torch.cat([pool(tokens, batch) for pool in functions], dim=-1)


def _mean_sqrt_len_tokens(tokens: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    pooled = np.maximum(batch.lengths - batch.skip, 0)
    roots = torch.from_numpy(np.sqrt(pooled, dtype=np.float32)).to(tokens.device)
    return (_bags(tokens, batch, "mean").float() * roots[:, None]).to(tokens.dtype)


def _weightedmean(tokens: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Weights grow from 1 at the first token of a text, including a prompt that is not pooled."""
    weights = batch.positions[0].to(torch.float32) + 1.0
    kept = torch.from_numpy(_kept(batch)).to(tokens.device)
    weights = weights * kept
    texts = torch.from_numpy(np.repeat(np.arange(len(batch.lengths)), batch.lengths))
    texts = texts.to(tokens.device)
    sums = tokens.new_zeros((len(batch.lengths), tokens.shape[1]), dtype=torch.float32)
    sums.index_add_(0, texts, tokens.float() * weights[:, None])
    totals = weights.new_zeros(len(batch.lengths)).index_add_(0, texts, weights)
    return (sums / totals.clamp(min=1e-9)[:, None]).to(tokens.dtype)


def _cls(tokens: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """The first token after the prompt, or the first of all if no token is pooled."""
    starts = batch.offsets[:-1]
    if batch.skip.any():
        after = np.where(batch.skip < batch.lengths, batch.skip, 0)
        starts = starts + torch.from_numpy(after).to(tokens.device)
    return tokens.index_select(0, starts)


def _lasttoken(tokens: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """The last token, or zeros if no token is pooled."""
    last = tokens.index_select(0, batch.offsets[1:] - 1)
    if batch.skip.any():
        pooled = torch.from_numpy(batch.skip < batch.lengths).to(tokens.device)
        last = last * pooled[:, None]
    return last


def _bags(tokens: torch.Tensor, batch: PackedBatch, mode: str) -> torch.Tensor:
    """Each text's tokens reduced in one call: a text is a bag of rows of an embedding table."""
    if not batch.skip.any():
        rows = torch.arange(len(tokens), device=tokens.device, dtype=batch.offsets.dtype)
        return embedding_bag(rows, tokens, batch.offsets, mode=mode, include_last_offset=True)
    kept = np.flatnonzero(_kept(batch)).astype(np.int32)
    sizes = np.maximum(batch.lengths - batch.skip, 0)
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)
    return embedding_bag(
        torch.from_numpy(kept).to(tokens.device),
        tokens,
        torch.from_numpy(offsets).to(tokens.device),
        mode=mode,
        include_last_offset=True,
    )


def _kept(batch: PackedBatch) -> NDArray[np.bool_]:
    """Whether each token of the batch is pooled, bool (T,)."""
    lengths = batch.lengths
    starts = np.cumsum(lengths) - lengths
    positions = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    kept: NDArray[np.bool_] = positions >= np.repeat(batch.skip, lengths)
    return kept


_MODES: dict[str, PackedPooling] = {
    "mean": partial(_bags, mode="mean"),
    "max": partial(_bags, mode="max"),
    "mean_sqrt_len_tokens": _mean_sqrt_len_tokens,
    "weightedmean": _weightedmean,
    "cls": _cls,
    "lasttoken": _lasttoken,
}
