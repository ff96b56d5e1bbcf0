"""Models on their device; the only package that imports torch.

In reading order:

- `protocol`: the interface between the engine and a model of any backend
- `torch_backend`, `openvino_backend`: one folder for each backend, see `worker.contract.backends`
- `kinds`: one file for each kind of model
- `detection`: detect the kind of a model from its files
- `library`: load models through sentence-transformers
- `reference`: the library's own vectors
- `compare`: compare vectors with the library's
- `english`: texts for calibration and measurement
- `token_rules`: the tokenization rules of a model
- `chats`: apply a model's chat template
- `tokenizer`: call the Rust tokenizer by these rules
- `tokens`: blocks of tokens
- `packing`, `rectangles`: group texts by length; pad each group to a rectangle
- `layout`: positions of texts in a packed batch
- `attention`: attention within each text of a packed batch
- `pooling`: pool the tokens of a packed batch
- `devices`: devices of torch, number formats, out-of-memory errors

Importing this package loads no compute library; `load` does.
"""

from __future__ import annotations

from typing import Any

from worker.contract.backends import choose_backend
from worker.contract.errors import SettingsError
from worker.contract.models import ModelSpec
from worker.encoder.protocol import Encoder, LoadOptions

__all__ = ["Encoder", "LoadOptions", "load"]


def load(spec: ModelSpec, **options: Any) -> Encoder:
    """Load a model, check its vectors against the library's, and return it ready to run.

    `options`: the fields of `LoadOptions`. Call it on a thread that ends, or on the device thread.

    Raises `ModelUnavailable`, `DeviceUnavailable`, `DeviceMemoryError`, and `SettingsError` for a
    backend, number format or device that does not exist, or a library that is not installed.
    """
    chosen = LoadOptions(**options)
    backend = choose_backend(chosen.backend, chosen.dtype)
    if reason := backend.missing():
        raise SettingsError(reason)
    if backend.cpu_only and chosen.device not in ("auto", "cpu"):
        raise SettingsError(f"backend {backend.name} runs on the cpu, not on {chosen.device!r}")
    encoder: Encoder = backend.open(spec, chosen)
    return encoder
