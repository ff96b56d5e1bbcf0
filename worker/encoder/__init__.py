"""Models on their device; the only package that imports torch.

In reading order:

- `protocol`: the interface of a model, for the engine
- `torch_encoder`: the torch backend, and its choice of a forward pass
- `openvino_encoder`: the OpenVINO backend
- `openvino_graph`: convert a model for OpenVINO
- `openvino_forward`: run a batch through OpenVINO
- `graph_cache`: converted models on disk
- `accuracy`: cosine of the number formats below float32 to float32
- `english`: texts for calibration and measurement
- `kinds`: detect the kind of a model from its files
- `library`: load models through sentence-transformers
- `devices`: device, number format, out-of-memory errors
- `cpu`: torch settings for CPUs
- `token_rules`: the tokenization rules of a model
- `chats`: apply a model's chat template
- `tokenizer`: call the Rust tokenizer by these rules
- `forward`: run a batch packed into one sequence, padded into rectangles, or as a lookup
- `bert`: the layers of BERT and related models, for packed batches on a CPU
- `rectangles`: pad texts of similar length to the longest
- `tokens`, `packing`: blocks of tokens; texts of similar length as rectangles
- `layout`: positions of texts in a packed batch
- `attention`: attention within each text of a packed batch
- `pooling`: pool the tokens of a packed batch
- `probe`: compare a forward pass with the library
- `reference`: the library's own vectors

Importing this package loads no torch; `load` does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from worker.contract.errors import SettingsError
from worker.contract.models import ModelSpec
from worker.contract.settings import user_cache
from worker.encoder.protocol import Encoder

__all__ = ["Encoder", "load"]


def load(
    spec: ModelSpec,
    *,
    device: str = "auto",
    backend: str = "auto",
    dtype: str = "auto",
    batch_tokens: int | None = None,
    threads: int | None = None,
    min_cosine: float = 0.99,
    memory_share: float = 1.0,
    cache: Path | None = None,
    padded: bool = False,
) -> Encoder:
    """Load a model, check that it gives the library's vectors, and return it ready to run.

    `device`: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`. `backend`: `torch`, `openvino`, or `auto`,
    which is torch: its packed batches were the faster float32 wherever both were measured; for
    int8, OpenVINO. `dtype`: `auto`, `float32`, `bfloat16`, `float16`, `int8`. `batch_tokens`:
    tokens of a full forward pass, None for what suits the device. `threads`: cores that a forward
    pass uses, with torch for the whole process. `min_cosine`: mean cosine to float32 that a smaller
    number format must reach. `memory_share`: the part of a GPU's memory to use. `cache`: where
    converted models are kept, None for the user's cache. `padded`: do without packing even where it
    works, to compare the two. To be called on the device thread, or on one that ends.

    Raises `ModelUnavailable`, `DeviceUnavailable`, `DeviceMemoryError`, and `SettingsError` for a
    backend or number format that does not exist.
    """
    if backend not in ("auto", "torch", "openvino"):
        raise SettingsError(f"backend {backend!r} is none of auto, torch, openvino")
    if backend == "openvino" or (backend == "auto" and dtype == "int8"):
        return _load_openvino(
            spec,
            device=device,
            dtype=dtype,
            batch_tokens=batch_tokens,
            threads=threads,
            min_cosine=min_cosine,
            cache=cache or user_cache(),
        )
    _set_allocator(os.environ)
    from worker.encoder.torch_encoder import load_torch

    return load_torch(
        spec,
        device=device,
        dtype=dtype,
        batch_tokens=batch_tokens,
        threads=threads,
        min_cosine=min_cosine,
        memory_share=memory_share,
        padded=padded,
    )


def _set_allocator(environ: MutableMapping[str, str]) -> None:
    """Let CUDA's memory grow in place: batches of many sizes otherwise leave gaps that none fits.

    torch reads this when it first uses CUDA. A user's own setting stays. The name without CUDA is
    that of torch 2.9 and newer, which warns of the other one unless both are there.
    """
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    if sys.platform == "linux" and not any(name in environ for name in names):
        environ.update(dict.fromkeys(names, "expandable_segments:True"))


def _load_openvino(spec: ModelSpec, **options: Any) -> Encoder:
    try:
        from worker.encoder.openvino_encoder import load_openvino
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "openvino":
            raise
        raise SettingsError(
            "backend openvino is not installed: pip install 'embedq[openvino]'"
        ) from error
    return load_openvino(spec, **options)
