"""Embed a large collection of texts with the Celery task, in order and a bounded part at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from celery.result import AsyncResult
from numpy.typing import NDArray

from worker import app
from worker.contract.errors import JobFailed
from worker.contract.outcomes import TextError
from worker.contract.results import matrix
from worker.store.celery_jobs import store_of
from worker.tasks import embed

#: Failures caused by the options: every other job would fail with them, too.
_OF_OPTIONS = frozenset(
    {"model_not_found", "invalid_dimensions", "invalid_prompt", "invalid_request"}
)


class _Part(NamedTuple):
    """Texts of one running job; `first` is the index of its first text in the collection."""

    first: int
    texts: Sequence[str]
    result: AsyncResult


def embed_all(
    texts: Iterable[str],
    *,
    texts_a_job: int = 64,
    jobs: int = 16,
    timeout: float | None = None,
    **options: Any,
) -> Iterator[NDArray[np.float32] | TextError]:
    """Yield one vector per text, float32 (d,), in the order of `texts`, which may be endless.

    At most `jobs` jobs of `texts_a_job` texts are under way; no further texts are read, sent or
    kept. Results that were read are removed from Redis. A text that cannot be embedded yields a
    TextError; its `index` is the text's place in the collection. `options` are those of `embed`.

    Raises JobFailed if the options are invalid, and celery.exceptions.TimeoutError if a job takes
    longer than `timeout` seconds. Do not call this inside a task: Celery tasks must not wait.
    """
    source = enumerate(iter(texts))
    under_way: deque[_Part] = deque()
    try:
        while True:
            while len(under_way) < jobs and (taken := list(islice(source, texts_a_job))):
                under_way.append(_send(taken[0][0], [text for _, text in taken], options))
            if not under_way:
                return
            yield from _answers(under_way.popleft(), timeout, options)
    finally:
        # The caller may have stopped early.
        for part in under_way:
            part.result.revoke()
            part.result.forget()


def _send(first: int, texts: Sequence[str], options: dict[str, Any]) -> _Part:
    return _Part(first, texts, embed.delay(texts, **options, encoding_format="base64"))


def _answers(
    part: _Part, timeout: float | None, options: dict[str, Any]
) -> Iterator[NDArray[np.float32] | TextError]:
    try:
        result = part.result.get(timeout=timeout)
    except JobFailed as error:
        if error.code in _OF_OPTIONS:
            raise
        yield from _apart(part, error, timeout, options)
        return
    finally:
        _drop(part.result)
    vectors, _ = matrix(result["embeddings"])
    faults = {fault["index"]: fault for fault in result["errors"]}
    for row, vector in enumerate(vectors):
        fault = faults.get(row)
        place = part.first + row
        yield vector if fault is None else TextError(place, fault["code"], fault["message"])


def _apart(
    part: _Part, error: JobFailed, timeout: float | None, options: dict[str, Any]
) -> Iterator[NDArray[np.float32] | TextError]:
    """Run the halves of a failed job, down to single texts, to find the texts that fail."""
    if len(part.texts) == 1:
        yield TextError(part.first, error.code, error.message)
        return
    middle = len(part.texts) // 2
    for first, texts in ((0, part.texts[:middle]), (middle, part.texts[middle:])):
        yield from _answers(_send(part.first + first, texts, options), timeout, options)


def _drop(result: AsyncResult) -> None:
    """Remove a result that was read, and stop counting it among the stored results."""
    store = store_of(app)
    if store is not None:
        store.release(result.id, 0)
    result.forget()
