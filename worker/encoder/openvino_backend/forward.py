"""A graph run over rectangles of texts, one after the other or on several cores."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from worker.encoder.packing import GroupCost, padded_length
from worker.encoder.rectangles import Rectangle, recurring_rectangles
from worker.encoder.tokens import TokenBlock

#: A rectangle costs as much as this many tokens in addition to its cells.
_COST = GroupCost(fixed=12.0, knee=512.0)
#: Most cells of a rectangle, which fit into a core's second-level cache, and the fewest that are
#: worth a run of their own.
_MOST_CELLS, _LEAST_CELLS = 512, 64
#: Rectangles of a batch for each of its cores, at least: they balance the load.
_RECTANGLES_A_CORE = 2
#: Texts of up to this many tokens are short.
_PREPARED_TOKENS = 32


class RectangleForward:
    """Runs batches in rectangles, each on one core, the largest first.

    Cores that share every kernel wait for each other at the end of each. So a batch has a core of
    its own, or several that meet at its end. Each core makes the kernels for a shape on its first
    use, which takes as long as one or two runs; so shapes are few. Up to `cores` + 1 threads may
    call it at once. OpenVINO's threads, which only compute, end with the object.

    `graph`: ids and mask int64 (n, L) to vectors float32 (n, d). `precision`: OpenVINO's name for
    the numbers that it computes in. `limit`: tokens of the longest text, None without a limit.
    `dimensions`: leading elements to keep of each vector, None for all.
    """

    def __init__(
        self,
        graph: Any,
        precision: str,
        cores: int,
        *,
        pad_id: int,
        limit: int | None,
        dimensions: int | None,
    ) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": cores + 1,
            "INFERENCE_NUM_THREADS": cores + 1,
            # Callers and Redis may share the cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._network = openvino.Core().compile_model(graph, "CPU", settings)
        self.cores = cores
        #: By thread.
        self._requests: dict[int, list[Any]] = {}
        self._counting = threading.Lock()
        self._pad_id = pad_id
        self._limit = limit
        size = self._network.output(0).partial_shape[1].get_length()
        self._dimensions = min(dimensions or size, size)
        #: Positions of all batches so far that held padding.
        self.padding = 0

    def __call__(self, batch: TokenBlock, cores: int = 1) -> NDArray[np.float32]:
        """Vectors of a batch, float32 (n, dimensions), computed on `cores` cores.

        Raises the RuntimeErrors of OpenVINO.
        """
        parts = self._rectangles(batch, cores)
        out = np.empty((len(batch), self._dimensions), dtype=np.float32)
        at_a_time = len(parts) if cores > 1 else 1
        for first in range(0, len(parts), at_a_time):
            some = parts[first : first + at_a_time]
            for part, request in zip(some, self._completed(some), strict=True):
                # A copy, since the next run overwrites the request's own buffer.
                out[part.texts] = request.get_output_tensor(0).data[:, : self._dimensions]
        return out

    def prepare(self) -> None:
        """Make every core's kernels for a single short text, the most common interactive batch."""
        longest = min(_PREPARED_TOKENS, self._limit or _PREPARED_TOKENS)
        for length in sorted({min(padded_length(n), longest) for n in range(1, longest + 1)}):
            ids = np.full((1, length), self._pad_id, dtype=np.int64)
            part = Rectangle(np.zeros(1, np.int64), ids, np.ones_like(ids, np.bool_), 0)
            self._completed([part] * (self.cores + 1))

    def release_buffers(self) -> None:
        """Release memory: each stream keeps the buffers of its largest rectangle."""
        self._requests = {}
        self._network.release_memory()

    def _rectangles(self, batch: TokenBlock, cores: int) -> list[Rectangle]:
        cells = batch.tokens // (cores * _RECTANGLES_A_CORE)
        cells = min(max(cells, _LEAST_CELLS), _MOST_CELLS)
        parts = list(recurring_rectangles(batch, _COST, self._pad_id, cells, self._limit))
        with self._counting:
            self.padding += sum(part.padding for part in parts)
        return sorted(parts, key=_duration, reverse=True)

    def _completed(self, parts: Sequence[Rectangle]) -> list[Any]:
        """Run each part in a request of the calling thread; return the completed requests."""
        own = self._requests.setdefault(threading.get_ident(), [])
        for _ in range(len(own), len(parts)):
            own.append(self._network.create_infer_request())
        requests = own[: len(parts)]
        try:
            for part, request in zip(parts, requests, strict=True):
                request.start_async([part.ids, part.real.astype(np.int64)], share_inputs=True)
            for request in requests:
                request.wait()
        except Exception:
            # Parts of a failed batch must not run at the same time as the next batch.
            for request in requests:
                with suppress(RuntimeError):
                    request.wait()
            raise
        return requests


def _duration(part: Rectangle) -> float:
    """Time of a rectangle, in cells."""
    count, length = part.ids.shape
    return float(count * _COST.of_row(length))
