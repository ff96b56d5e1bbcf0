"""Pooling over packed tokens: every mode of sentence-transformers' `Pooling`, without padding.

Equal to `sentence_transformers.sentence_transformer.modules.Pooling` on each text alone, texts
whose every token is left out included.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

from worker.encoder.layout import PackedBatch

PackedPooling = Callable[[torch.Tensor, PackedBatch], torch.Tensor]


def packed_pooling(modes: tuple[str, ...]) -> PackedPooling:
    """What pools token vectors (T, size) of a batch to (n, len(modes) * size).

    Raises `NotImplementedError` for a mode it does not know.
    """
    unknown = set(modes) - set(_MODES)
    if unknown:
        raise NotImplementedError(f"pooling by {', '.join(sorted(unknown))}")
    functions = [_MODES[mode] for mode in modes]
    if len(functions) == 1:
        return functions[0]
    return lambda tokens, batch: torch.cat([pool(tokens, batch) for pool in functions], dim=-1)


def _mean(tokens: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    return _bags(tokens, batch, "mean")


def _max(tokens: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    return _bags(tokens, batch, "max")


def _mean_sqrt_len_tokens(tokens: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    pooled = np.maximum(batch.lengths - batch.skip, 0)
    roots = torch.from_numpy(np.sqrt(pooled, dtype=np.float32)).to(tokens.device)
    return (_mean(tokens, batch).float() * roots[:, None]).to(tokens.dtype)


def _weightedmean(tokens: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Weights grow from 1 at the first token of a text; leaving a prompt out renumbers nothing."""
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
    """The first token after the prompt, or the very first where nothing is left."""
    starts = batch.offsets[:-1]
    if batch.skip.any():
        after = np.where(batch.skip < batch.lengths, batch.skip, 0)
        starts = starts + torch.from_numpy(after).to(tokens.device)
    return tokens.index_select(0, starts)


def _lasttoken(tokens: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """The last token, or zeros where nothing is left."""
    last = tokens.index_select(0, batch.offsets[1:] - 1)
    if batch.skip.any():
        left = torch.from_numpy(batch.skip < batch.lengths).to(tokens.device)
        last = last * left[:, None]
    return last


_MODES: dict[str, PackedPooling] = {
    "mean": _mean,
    "max": _max,
    "mean_sqrt_len_tokens": _mean_sqrt_len_tokens,
    "weightedmean": _weightedmean,
    "cls": _cls,
    "lasttoken": _lasttoken,
}


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
    """Which of the batch's tokens are pooled, bool (T,)."""
    lengths = batch.lengths
    starts = np.cumsum(lengths) - lengths
    positions = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    kept: NDArray[np.bool_] = positions >= np.repeat(batch.skip, lengths)
    return kept
