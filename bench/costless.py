"""A worker with a model that costs no time: only queue, pool and results remain.

`celery -A bench.costless worker` is embedq's own worker with only the encoder replaced. Vectors
are a fixed function of the text, so that a reader of a result can check it.

- `EMBEDQ_BENCH_FORWARD_MS` is the time of a batch, to simulate a device.
- `EMBEDQ_BENCH_DIMENSIONS`, a multiple of 8, makes results as large as a model's.
- `EMBEDQ_BENCH_TRANSPORT=stock` replaces the transport with kombu's own, which can lose jobs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np
from celery.signals import celeryd_init
from numpy.typing import NDArray

from bench.stock import use_stock_transport
from worker import app, loading
from worker.contract.models import ModelInfo
from worker.contract.settings import Settings
from worker.encoder.protocol import Cause, Encoder
from worker.encoder.tokens import TokenBlock

__all__ = ["DIMENSIONS", "CostlessEncoder", "app", "expected"]

#: Distinct numbers of a vector; longer vectors repeat them.
DIMENSIONS = 8
#: Only this many first bytes of a text determine its vector.
MOST_TOKENS = 64
_PLACES = np.arange(MOST_TOKENS, dtype=np.int32)
#: int32 (MOST_TOKENS, DIMENSIONS): the weight of a byte in each number, by its position.
_WEIGHTS = (_PLACES[:, None] + 1) % (np.arange(DIMENSIONS, dtype=np.int32) + 3) + 1


class CostlessEncoder:
    """An encoder with bytes as tokens and weighted sums as vectors."""

    def __init__(
        self, name: str = "costless", milliseconds: float = 0.0, dimensions: int = DIMENSIONS
    ) -> None:
        self.info = ModelInfo(
            name=name,
            dimensions=dimensions,
            max_tokens=MOST_TOKENS,
            device="cpu",
            backend="none",
            dtype="float32",
            packed=True,
            batch_tokens=int(os.environ.get("EMBEDQ_BATCH_TOKENS", "16384")),
        )
        self._seconds = milliseconds / 1000
        self._never = threading.Event()
        self.padding = 0
        self.slots = 1
        self.reserved = False

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> TokenBlock:
        prefix = (prompt or "").encode()
        rows = [(prefix + text.encode())[:MOST_TOKENS] or b"\0" for text in texts]
        lengths = [len(row) for row in rows]
        return TokenBlock(
            ids=np.frombuffer(b"".join(rows), dtype=np.uint8).astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            skip=np.zeros(len(rows), dtype=np.int32),
            truncated=np.array([len(text) > MOST_TOKENS for text in texts]),
        )

    def forward(self, batch: TokenBlock, *, cores: int = 1) -> NDArray[np.float32]:
        if self._seconds:
            self._never.wait(self._seconds)
        texts = np.zeros((len(batch), MOST_TOKENS), dtype=np.int32)
        texts[batch.lengths[:, None] > _PLACES] = batch.ids
        vectors = (texts @ _WEIGHTS).astype(np.float32)
        return np.tile(vectors, (1, self.info.dimensions // DIMENSIONS))

    def enter(self, *, yielding: bool) -> None:
        pass

    def cause(self, error: BaseException) -> Cause:
        return Cause.MEMORY if isinstance(error, MemoryError) else Cause.TEXT

    def release_memory(self) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass


def expected(texts: Sequence[str], dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    """Return the correct result of a job: normalized vectors, float32 (n, dimensions)."""
    encoder = CostlessEncoder(dimensions=dimensions)
    vectors = encoder.forward(encoder.tokenize(texts))
    lengths: NDArray[np.float32] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths


def _load(settings: Settings) -> dict[str, Encoder]:
    milliseconds = float(os.environ.get("EMBEDQ_BENCH_FORWARD_MS", "0"))
    dimensions = int(os.environ.get("EMBEDQ_BENCH_DIMENSIONS", str(DIMENSIONS)))
    return {
        spec.name: CostlessEncoder(spec.name, milliseconds, dimensions) for spec in settings.models
    }


@celeryd_init.connect
def _replace_encoders(**_: object) -> None:
    # Only in a worker: readers of results also import this module.
    loading.load_encoders = _load


if os.environ.get("EMBEDQ_BENCH_TRANSPORT") == "stock":
    # For a fair comparison, a killed worker's messages return within the run.
    use_stock_transport(app, visibility_timeout=Settings.from_env().lease_seconds)
