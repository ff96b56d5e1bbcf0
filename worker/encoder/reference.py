"""The library itself, as the reference of every other way to run a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from worker.contract.models import ModelSpec
from worker.encoder.devices import choose_device
from worker.encoder.library import encode_alone, open_model


class Reference:
    """`SentenceTransformer.encode` of a model in float32, untouched by this package."""

    def __init__(self, spec: ModelSpec, *, device: str = "auto") -> None:
        """Raises the errors of `worker.encoder.load`."""
        place = choose_device(device)
        #: Type of its device: `cpu`, `cuda` or `mps`.
        self.device = place.type
        self._model = open_model(spec, place, torch.float32)

    def encode_alone(self, texts: Sequence[str], prompt: str | None = None) -> NDArray[np.float32]:
        """Vectors of `texts`, each in a call of its own, float32 (n, dimensions)."""
        return encode_alone(self._model, texts, prompt)

    def encode(
        self, texts: Sequence[str], prompt: str | None = None, *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Vectors of `texts` in one call as users make it, float32 (n, dimensions)."""
        vectors: NDArray[np.float32] = self._model.encode(
            list(texts), prompt=prompt, batch_size=batch_size, show_progress_bar=False
        )
        return vectors
