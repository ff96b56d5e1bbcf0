"""One way to run the model, in its own process: encode texts, report the seconds.

Each contestant has its own process, because computing threads of one process slow each other down;
see `worker.loading.on_passing_thread`.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from bench import models
from bench.models import Matrix
from bench.peer import Peer, serve


class Own(Peer):
    """A process with the engine, or with the encoder `alone`, on a backend in a number format."""

    def __init__(self, backend: str = "auto", dtype: str = "auto", *, alone: str = "") -> None:
        super().__init__("bench.contestant", backend, dtype, alone)
        self.encode(["warm"] * 64)

    def encode(self, texts: Sequence[str], texts_a_job: int = 1) -> float:
        """Return the seconds until all vectors were available."""
        return cast("float", self.ask(texts=list(texts), texts_a_job=texts_a_job)["seconds"])

    def vectors(self, texts: Sequence[str]) -> Matrix:
        """Return the vectors, float32 (n, d)."""
        answer = self.ask(texts=list(texts), texts_a_job=1, wanted=True)
        return np.asarray(answer["vectors"], dtype=np.float32)


def _encoding(backend: str, dtype: str, alone: str) -> Callable[[list[str], int], Matrix]:
    make = functools.partial(models.encoder, backend, dtype, padded=alone == "padded")
    if alone:
        # Only this thread loads and runs the model.
        model = make()
        return lambda texts, _: models.encode_in_order(model, texts)
    engine = models.RawEngine(make())
    return engine.encode


def main() -> None:
    encode = _encoding(*sys.argv[1:])

    def answer(texts: list[str], texts_a_job: int, wanted: bool = False) -> dict[str, Any]:
        began = time.perf_counter()
        found = encode(texts, texts_a_job)
        seconds = time.perf_counter() - began
        return {"seconds": seconds} | ({"vectors": found.tolist()} if wanted else {})

    serve(answer)


if __name__ == "__main__":
    main()
