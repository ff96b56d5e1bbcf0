"""The library itself: what every other way of running a model has to agree with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from worker.contract.models import ModelSpec
from worker.encoder.devices import DTYPES, choose_device
from worker.encoder.library import open_model


class Reference:
    """`SentenceTransformer.encode` of a model in float32, untouched by this package."""

    def __init__(self, spec: ModelSpec, *, device: str = "auto") -> None:
        """Raises what `worker.encoder.load` raises."""
        place = choose_device(device)
        #: Where it runs: `cpu`, `cuda` or `mps`.
        self.device = place.type
        self._model = open_model(spec, place, DTYPES["float32"])

    def encode_alone(self, texts: Sequence[str], prompt: str | None = None) -> NDArray[np.float32]:
        """Vectors of `texts`, each in a call of its own, float32 (n, dimensions)."""
        rows = [self.encode([text], prompt) for text in texts]
        return np.concatenate(rows)

    def encode(
        self, texts: Sequence[str], prompt: str | None = None, *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Vectors of `texts` in one call as users make it, float32 (n, dimensions)."""
        vectors: NDArray[np.float32] = self._model.encode(
            list(texts), prompt=prompt, batch_size=batch_size, show_progress_bar=False
        )
        return vectors
