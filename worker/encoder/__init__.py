"""Models on their device; the only package that imports torch.

In reading order:

`protocol`       what the engine asks of a model: tokenise, forward, and little else
`torch_encoder`  the torch backend: load, choose a forward pass by evidence
`openvino_encoder`  the OpenVINO backend, `openvino_graph`, its copy of a model,
`openvino_forward`  how a batch runs through it, and
`graph_cache`    what becomes of copies on disk
`accuracy`       how close the number formats below float32 come to it
`english`        texts to calibrate and measure with
`kinds`          which kind of model a checkpoint holds, from its files
`library`        models and their facts as sentence-transformers loads them
`devices`        device, number format, running out of memory
`cpu`            what makes torch faster there
`token_rules`    how a model wants its texts tokenised …
`chats`          … around them a chat, if the model has a template for it …
`tokenizer`      … and the Rust calls that do it
`forward`        a batch packed into one sequence, padded into rectangles, or looked up
`bert`           the layers of BERT and its closest relatives, for packed batches on a CPU
`streams`        a batch in parts, each on a core of its own
`rectangles`     texts of like length, padded to the longest
`layout`         where each text of a packed batch lies
`attention`      attention that stays inside each text of a packed batch
`pooling`        pooling of packed tokens
`probe`          whether a forward pass gives the library's vectors
`reference`      the library itself, to compare with

Importing this package loads no torch; `load` does.
"""

from __future__ import annotations

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
    cache: Path | None = None,
    padded: bool = False,
) -> Encoder:
    """Load a model, check that it gives the library's vectors, and return it ready to run.

    `device`: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`. `backend`: `torch`, `openvino`, or `auto`,
    which is torch: its packed batches were the faster float32 wherever both were measured; for
    int8, OpenVINO. `dtype`: `auto`, `float32`, `bfloat16`, `float16`, `int8`. `batch_tokens`:
    tokens of a full forward pass, None for what suits the device. `threads`: cores that a forward
    pass uses, with torch for the whole process. `min_cosine`: mean cosine to float32 that a smaller
    number format must reach. `cache`: where converted models are kept, None for the user's cache.
    `padded`: do without packing even where it works, to compare the two. To be called on the
    device thread, or on one that ends.

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
    from worker.encoder.torch_encoder import load_torch

    return load_torch(
        spec,
        device=device,
        dtype=dtype,
        batch_tokens=batch_tokens,
        threads=threads,
        min_cosine=min_cosine,
        padded=padded,
    )


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
