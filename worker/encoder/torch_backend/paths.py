"""The choice of a forward pass: the fastest one that gives the library's vectors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from worker.contract.errors import ModelUnavailable
from worker.contract.models import ModelSpec
from worker.encoder import compare, devices
from worker.encoder.library import attention_of, encode_alone, first_line, set_attention
from worker.encoder.tokenizer import Tokenizer
from worker.encoder.tokens import TokenBlock
from worker.encoder.torch_backend import bert, cpu
from worker.encoder.torch_backend.forward import (
    GROUP_COST,
    ONE_LENGTH,
    ForwardPass,
    PackedForward,
    PaddedForward,
    StaticForward,
)

_log = logging.getLogger(__name__)


class ChosenPath(NamedTuple):
    """A forward pass, its name as in `ModelInfo.path`, and the length of its vectors."""

    name: str
    forward: ForwardPass
    dimensions: int


def choose_path(
    spec: ModelSpec, model: SentenceTransformer, tokenizer: Tokenizer, padded: bool
) -> ChosenPath:
    """Return the fastest forward pass that gives the library's vectors.

    `padded`: without packing. Raises `ModelUnavailable` if no forward pass gives them, and torch's
    exceptions for exhausted memory.
    """
    texts = compare.probe_texts(model)
    batch, expected = tokenizer(texts), encode_alone(model, texts)
    attention, objection = attention_of(model), ""
    for name, make in _candidates(model, padded):
        try:
            forward = make()
            objection = _objection(forward, batch, expected, model.dtype) or ""
        except Exception as error:
            if devices.is_out_of_memory(error):
                raise
            objection = first_line(error)
        if not objection:
            return ChosenPath(name, forward, expected.shape[1])
        _log.warning("model %s cannot run by the path %r: %s", spec.name, name, objection)
        set_attention(model, attention)
    raise ModelUnavailable(
        f"model {spec.name!r} gives other vectors here than in sentence-transformers: {objection}"
    )


def _objection(
    forward: ForwardPass, batch: TokenBlock, expected: NDArray[np.float32], dtype: torch.dtype
) -> str | None:
    with torch.inference_mode():
        return compare.objection(forward(batch), expected, dtype == torch.float32)


def _candidates(
    model: SentenceTransformer, padded: bool
) -> list[tuple[str, Callable[[], ForwardPass]]]:
    """Names of forward passes that may suit the model, and their makers, the fastest first."""
    if model.transformers_model is None:
        return [("table", lambda: StaticForward(model))]
    paths: list[tuple[str, Callable[[], ForwardPass]]] = []
    if not padded and not compare.exceeds_probe(model):
        if model.device.type == "cuda" and model.dtype != torch.float32:
            paths.append(("kernel", lambda: PackedForward(model, None)))
        if bert.supports(model):
            paths.append(("layers", lambda: PackedForward(model, ONE_LENGTH, bert.BertLayers)))
        paths.append(("groups", lambda: PackedForward(_tuned(model), GROUP_COST)))
    paths.append(("padded", lambda: PaddedForward(_tuned(model))))
    return paths


def _tuned(model: SentenceTransformer) -> SentenceTransformer:
    if model.device.type == "cpu":
        cpu.fuse_activations(model)
        cpu.lay_out_weights(model)
    return model
