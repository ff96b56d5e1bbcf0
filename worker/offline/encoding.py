"""Windows of texts to vectors, several under way at once, in order, with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from worker.contract.bisection import bisect
from worker.contract.errors import JobFailed
from worker.contract.outcomes import Matrix, Outcome, TextError
from worker.offline.rows import TextRow

#: Texts of one job: full batches for any device, and little to do again after an interruption.
WINDOW = 256
#: Windows under way: enough that the device never waits for the reader; this bounds memory.
AHEAD = 8


class JobRunner(Protocol):
    """The engine in this process or a service; called from several threads at once."""

    def embed(self, texts: Sequence[str]) -> Outcome | JobFailed:
        """The outcome of one job of 1 to WINDOW texts."""

    def close(self) -> None:
        """End the calls under way soon; they may raise."""


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """The vectors of successive rows.

    `vectors` is float32 (n, d) with zero rows for failed texts, or None if all texts failed.
    `errors` has the reasons, with indices in the window.
    """

    size: int
    vectors: Matrix | None
    errors: Sequence[TextError]
    tokens: int
    truncated: int


def encode_in_order(
    rows: Iterable[TextRow], runner: JobRunner
) -> Generator[EncodedRows, None, None]:
    """The windows of all rows, in their order.

    The caller's thread reads rows and takes windows; threads of a pool encode. Closing the iterator
    early drops windows that have not begun and interrupts the others.
    """
    with _pool(runner) as pool:
        under_way: deque[Future[EncodedRows]] = deque()
        for window in _windows(rows):
            under_way.append(pool.submit(_encode_window, window, runner))
            if len(under_way) == AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


@contextmanager
def _pool(runner: JobRunner) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="embedq-corpus")
    try:
        yield pool
    except BaseException:
        runner.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _windows(rows: Iterable[TextRow]) -> Iterator[list[TextRow]]:
    window: list[TextRow] = []
    for row in rows:
        window.append(row)
        if len(window) == WINDOW:
            yield window
            window = []
    if window:
        yield window


def _encode_window(rows: Sequence[TextRow], runner: JobRunner) -> EncodedRows:
    texts, places = [], []
    errors = []
    for index, row in enumerate(rows):
        if row.text is None:
            errors.append(TextError(index, "invalid_row", row.reason))
        else:
            texts.append(row.text)
            places.append(index)
    vectors, tokens, truncated = None, 0, 0
    # A text that fails a whole job only delays the other texts: the job is bisected.
    for start, _, outcome in bisect(texts, runner.embed):
        if isinstance(outcome, JobFailed):
            errors.append(TextError(places[start], outcome.code, outcome.message))
            continue
        if vectors is None:
            vectors = np.zeros((len(rows), outcome.vectors.shape[1]), dtype=np.float32)
        vectors[places[start : start + len(outcome.vectors)]] = outcome.vectors
        errors += (TextError(places[start + e.index], e.code, e.message) for e in outcome.errors)
        tokens += outcome.prompt_tokens
        truncated += len(outcome.truncated)
    return EncodedRows(len(rows), vectors, sorted(errors), tokens, truncated)
