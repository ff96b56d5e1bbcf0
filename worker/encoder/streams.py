"""A batch cut into parts that run at the same time, each on a core of its own."""

from __future__ import annotations

import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import pairwise
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from worker.encoder.forward import Forward
from worker.tokens import TokenBlock

S = TypeVar("S")
T = TypeVar("T")

#: Tokens of a part, at least. Two texts of 16 tokens each run as fast one after the other.
_LEAST_TOKENS = 32
#: Batches of fewer tokens gain nothing from a second core.
_SMALL_TOKENS = 64
#: How much more than its fair share the largest part may hold before cores wait for one another
#: longer than they do inside each kernel.
_IMBALANCE = 1.25


class StreamedForward:
    """Runs a forward pass in parts on streams, where the batch has texts enough for that.

    Cores that share every kernel wait for one another at the end of each; a core that another
    process takes away for a moment then holds up all of them, hundreds of times a batch. Parts
    meet once, at the end of the batch. A batch of few tokens runs as a whole on one stream, and so
    does one that is mostly a single long text, unless it may run `here`: on the caller's thread,
    with all its cores.

    One thread calls it; `streams` run nothing but what it hands them, in that order.
    """

    def __init__(self, forward: Forward, streams: Streams, *, here: bool = True) -> None:
        self._forward = forward
        self._streams = streams
        self._here = here

    @property
    def packed(self) -> bool:
        return self._forward.packed

    @property
    def padding(self) -> int:
        return self._forward.padding

    def __call__(self, batch: TokenBlock) -> NDArray[np.float32]:
        """Vectors of a batch, float32 (n, size), in its order."""
        begun = self.begin(batch)
        return self._forward(batch) if begun is None else begun.vectors()

    def begin(self, batch: TokenBlock) -> Parts | None:
        """Begin a batch on the streams; None where it is to run here."""
        parts = split(batch.lengths, len(self._streams))
        if len(parts) > 1:
            run = functools.partial(self._run_part, batch)
            return Parts(parts, self._streams.start(run, parts))
        if batch.tokens < _SMALL_TOKENS or not self._here:
            return Parts(parts, self._streams.start(self._run_whole, [batch]), whole=True)
        return None

    def _run_part(self, batch: TokenBlock, part: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._run_whole(batch.take(part))

    def _run_whole(self, batch: TokenBlock) -> NDArray[np.float32]:
        with torch.inference_mode():
            return self._forward(batch)


class Parts:
    """A batch that runs on streams; see `Begun` for the thread that may call what.

    `parts`: the texts of each, int64 indices; `whole`: there is one, in the batch's own order.
    """

    def __init__(
        self,
        parts: Sequence[NDArray[np.int64]],
        running: Sequence[Future[NDArray[np.float32]]],
        *,
        whole: bool = False,
    ) -> None:
        self._parts = parts
        self._running = running
        self._whole = whole

    def wait_for_core(self) -> None:
        wait(self._running, return_when=FIRST_COMPLETED)

    def vectors(self) -> NDArray[np.float32]:
        """Float32 (n, size), in the batch's order, once all parts are done.

        Raises what the first part that failed raised.
        """
        vectors = results(self._running)
        if self._whole:
            return vectors[0]
        texts = sum(map(len, self._parts))
        out = np.empty((texts, vectors[0].shape[1]), dtype=np.float32)
        for part, rows in zip(self._parts, vectors, strict=True):
            out[part] = rows
        return out


def split(lengths: NDArray[np.int64], streams: int) -> list[NDArray[np.int64]]:
    """The texts of each part of a batch, int64 indices; one part where it is better run whole.

    Parts hold about as many tokens each, in texts of similar length.
    """
    order = np.argsort(lengths, kind="stable")[::-1]
    total = int(lengths.sum())
    if streams < 2 or total < streams * _LEAST_TOKENS:
        return [order]
    ends = np.cumsum(lengths[order])
    # Each cut is after the text whose middle it falls behind.
    cuts = np.searchsorted(ends - lengths[order] / 2, total * np.arange(1, streams) / streams)
    bounds = np.unique(np.concatenate([[0], cuts, [len(order)]]))
    parts = [order[start:stop] for start, stop in pairwise(bounds)]
    most = max(int(lengths[part].sum()) for part in parts)
    return parts if most * streams <= _IMBALANCE * total else [order]


class Streams:
    """Daemon threads that each compute with `cores` cores, as `nice` to others as they are told.

    They end with `close`, and when nobody holds the object any more. A call that hangs hangs its
    caller, and keeps no process alive.
    """

    def __init__(self, count: int, cores: int = 1, *, nice: int = 0) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        ready = threading.Barrier(count + 1)
        self._threads = [
            threading.Thread(
                target=_work,
                args=(self._calls, cores, nice, ready),
                name=f"embedq-stream-{number}",
                daemon=True,
            )
            for number in range(count)
        ]
        everywhere = torch.get_num_threads()
        for thread in self._threads:
            thread.start()
        ready.wait()
        # What was set last holds for every thread that has not computed yet.
        torch.set_num_threads(everywhere)
        self._end = weakref.finalize(self, _end, self._calls, count)

    def __len__(self) -> int:
        return len(self._threads)

    def start(self, call: Callable[[S], T], items: Sequence[S]) -> list[Future[T]]:
        """`call` of each item, behind those that were started before."""
        futures: list[Future[T]] = [Future() for _ in items]
        for future, item in zip(futures, items, strict=True):
            self._calls.put(functools.partial(_settle, future, call, item))
        return futures

    def close(self) -> None:
        """End the threads once they have run what they were given. No call may follow."""
        self._end()
        for thread in self._threads:
            thread.join()


def results(futures: Sequence[Future[T]]) -> list[T]:
    """What the calls gave, once all are done; raises what the first that failed raised."""
    wait(futures)
    return [future.result() for future in futures]


def _work(
    calls: SimpleQueue[Callable[[], None] | None], cores: int, nice: int, ready: threading.Barrier
) -> None:
    if nice and sys.platform == "linux":
        # There it is each thread's own; elsewhere the process's.
        os.nice(nice)
    # OpenMP keeps this for each thread that calls it; asked first, torch does not set it again
    # when it computes here for the first time.
    torch.get_num_threads()
    torch.set_num_threads(cores)
    ready.wait()
    while (call := calls.get()) is not None:
        call()
        # A queue that is empty must not keep the last batch.
        del call


def _end(calls: SimpleQueue[Callable[[], None] | None], count: int) -> None:
    for _ in range(count):
        calls.put(None)


def _settle(future: Future[T], call: Callable[[S], T], item: S) -> None:
    try:
        future.set_result(call(item))
    except BaseException as error:  # noqa: BLE001 - raised by whoever waits
        future.set_exception(error)
