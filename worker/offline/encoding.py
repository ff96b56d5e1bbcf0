"""Windows of texts to vectors, several under way at once, in order, with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from worker.contract.errors import JobFailed
from worker.contract.results import Matrix, Outcome, TextError
from worker.offline.rows import Row

#: Texts of one job: full batches for any device, and little to do again after an interruption.
WINDOW = 256
#: Windows under way: the device never waits for the reader, memory holds no more than these.
AHEAD = 8


class Encoder(Protocol):
    """Where texts become vectors; called from several threads at once."""

    def embed(self, texts: list[str]) -> Outcome | JobFailed:
        """What became of one job of 1 to WINDOW texts."""

    def interrupt(self) -> None:
        """End the calls under way soon; they may raise."""


@dataclass(frozen=True, slots=True)
class Window:
    """The vectors of successive rows.

    `vectors` float32 (n, d), the rows of failed texts zero, or None where every one failed;
    `errors` say why, with indices in the window.
    """

    size: int
    vectors: Matrix | None
    errors: Sequence[TextError]
    tokens: int
    truncated: int


def encode_in_order(rows: Iterable[Row], encoder: Encoder) -> Generator[Window, None, None]:
    """The windows of all rows, in their order.

    The caller's thread reads and takes, threads of a pool encode; closing the iterator early drops
    what has not begun and interrupts what has.
    """
    with _pool(encoder) as pool:
        under_way: deque[Future[Window]] = deque()
        for window in _windows(rows):
            under_way.append(pool.submit(_encode_window, window, encoder))
            if len(under_way) == AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


@contextmanager
def _pool(encoder: Encoder) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="embedq-corpus")
    try:
        yield pool
    except BaseException:
        encoder.interrupt()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _windows(rows: Iterable[Row]) -> Iterator[list[Row]]:
    window: list[Row] = []
    for row in rows:
        window.append(row)
        if len(window) == WINDOW:
            yield window
            window = []
    if window:
        yield window


def _encode_window(rows: Sequence[Row], encoder: Encoder) -> Window:
    texts, places = [], []
    errors = []
    for index, row in enumerate(rows):
        if row.text is None:
            errors.append(TextError(index, "invalid_row", row.reason))
        else:
            texts.append(row.text)
            places.append(index)
    vectors, tokens, truncated = None, 0, 0
    for start, part in _outcomes(texts, encoder):
        if isinstance(part, JobFailed):
            errors.append(TextError(places[start], part.code, part.message))
            continue
        if vectors is None:
            vectors = np.zeros((len(rows), part.vectors.shape[1]), dtype=np.float32)
        vectors[places[start : start + len(part.vectors)]] = part.vectors
        errors += (TextError(places[start + e.index], e.code, e.message) for e in part.errors)
        tokens += part.prompt_tokens
        truncated += len(part.truncated)
    return Window(len(rows), vectors, sorted(errors), tokens, truncated)


def _outcomes(texts: list[str], encoder: Encoder) -> Iterator[tuple[int, Outcome | JobFailed]]:
    """Outcomes by the index of their first text; a job that fails is halved until it is one text.

    So a text that a whole job falls with costs its neighbours nothing but time.
    """
    parts = [(0, texts)] if texts else []
    while parts:
        start, part = parts.pop()
        outcome = encoder.embed(part)
        if isinstance(outcome, JobFailed) and len(part) > 1:
            half = len(part) // 2
            parts += [(start + half, part[half:]), (start, part[:half])]
        else:
            yield start, outcome
