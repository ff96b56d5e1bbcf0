"""Models on their device; the only package that imports torch.

In reading order:

`protocol`       what the engine asks of a model: tokenise, forward, and little else
`torch_encoder`  the torch backend: load, choose a forward pass by evidence
`library`        models and their facts as sentence-transformers loads them
`devices`        device, number format, running out of memory
`cpu`            what makes torch faster there
`token_rules`    how a model wants its texts tokenised …
`tokenizer`      … and the Rust calls that do it
`forward`        a batch packed into one sequence, padded into rectangles, or looked up
`layout`         where each text of a packed batch lies
`attention`      attention that stays inside each text of a packed batch
`pooling`        pooling of packed tokens
`probe`          whether a forward pass gives the library's vectors
`reference`      the library itself, to compare with

Importing this package loads no torch; `load` does.
"""

from __future__ import annotations

from worker.contract.errors import SettingsError
from worker.contract.models import ModelSpec
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
    padded: bool = False,
) -> Encoder:
    """Load a model, check that it gives the library's vectors, and return it ready to run.

    `device`: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`. `dtype`: `auto`, `float32`, `bfloat16`,
    `float16`. `batch_tokens`: tokens of a full forward pass, None for what suits the device.
    `threads`: cores that torch uses, for the whole process. `padded`: do without packing even
    where it works, to compare the two. To be called on the device thread.

    Raises `ModelUnavailable`, `DeviceUnavailable`, `DeviceMemoryError`, and `SettingsError` for a
    backend or number format that does not exist.
    """
    if backend not in ("auto", "torch"):
        raise SettingsError(f"backend {backend!r} is none of auto, torch")
    from worker.encoder.torch_encoder import load_torch

    return load_torch(
        spec, device=device, dtype=dtype, batch_tokens=batch_tokens, threads=threads, padded=padded
    )
