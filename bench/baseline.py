"""The baseline of all comparisons: `SentenceTransformer.encode` without embedq's engine.

It runs in its own process, because embedq's settings of torch and the C library would speed it up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import cast

from bench.peer import Peer, serve


class Baseline(Peer):
    """The library with the default model, warmed up."""

    def __init__(self) -> None:
        super().__init__("bench.baseline")
        self.encode(["warm"] * 64)

    def encode(self, texts: Sequence[str]) -> float:
        """Return the seconds of one call over all texts, batch 32."""
        return cast("list[float]", self.ask(calls=[list(texts)], pause=0.0))[0]

    def encode_each(self, parts: Sequence[Sequence[str]], pause: float) -> list[float]:
        """Return the seconds of one call for each part, with a pause before each."""
        return cast("list[float]", self.ask(calls=[list(part) for part in parts], pause=pause))


def main() -> None:
    from bench.models import library

    model = library()
    rest = threading.Event()

    def encode(calls: list[list[str]], pause: float) -> list[float]:
        seconds = []
        for texts in calls:
            rest.wait(pause)
            began = time.perf_counter()
            model.encode(texts)
            seconds.append(time.perf_counter() - began)
        return seconds

    serve(encode)


if __name__ == "__main__":
    main()
