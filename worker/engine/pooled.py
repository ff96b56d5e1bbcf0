"""The texts of a job that are read in windows: which rows those are, and their mean so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from worker.contract.outcomes import Matrix

#: How far from 1 the squared length of a vector may be that a model scaled to 1, in 16 bits too.
_UNIT = 1e-2


@dataclass(slots=True)
class _Text:
    """One such text: windows without a vector yet, the sum of the others weighted by tokens."""

    left: int
    tokens: int = 0
    sum: NDArray[np.float64] | None = None
    #: Whether every window's vector has length 1.
    unit: bool = True
    failed: bool = False


@dataclass(slots=True)
class Pooled:
    """Rows past a job's own texts are windows, each of one of those texts.

    The thread that tokenizes adds windows, before any batch holds them; the engine's lock guards
    all else.
    """

    #: Texts of the job, and so the row of the first window.
    first: int
    _text_of: list[int] = field(default_factory=list)
    _texts: dict[int, _Text] = field(default_factory=dict)
    #: Texts whose last window came since `ended` was called.
    _ended: int = 0

    def add(self, text: int, windows: int) -> int:
        """A text is read in so many windows. Returns the row of the first of them."""
        row = self.first + len(self._text_of)
        self._texts[text] = _Text(windows)
        self._text_of += [text] * windows
        return row

    def text_of(self, row: int) -> int:
        """The text that a window is of."""
        return self._text_of[row - self.first]

    def keep(
        self, row: int, vectors: Matrix, tokens: Sequence[int]
    ) -> Iterator[tuple[int, Matrix]]:
        """Windows from `row` on have vectors, float32 (n, d); `tokens` of each are its weight.

        Yields texts that are complete with their vectors, float32 (d,): the mean, of length 1 where
        all windows' are. Failed texts are not among them.
        """
        for place, (vector, weight) in enumerate(zip(vectors, tokens, strict=True)):
            index = self.text_of(row + place)
            text = self._texts[index]
            wide = vector.astype(np.float64)
            weighted = wide * weight
            text.sum = weighted if text.sum is None else text.sum + weighted
            text.tokens += weight
            text.unit = text.unit and abs(float(wide @ wide) - 1.0) < _UNIT
            text.left -= 1
            if not text.left:
                self._ended += 1
                if not text.failed:
                    yield index, _mean(text.sum, text)

    def fail(self, text: int) -> bool:
        """A window has no vector, so its text has none. Whether that was not known."""
        known = self._texts[text].failed
        self._texts[text].failed = True
        return not known

    def ended(self) -> int:
        """Texts whose last window came since the last call."""
        ended, self._ended = self._ended, 0
        return ended


def _mean(weighted: NDArray[np.float64], text: _Text) -> Matrix:
    mean = weighted / text.tokens
    if text.unit:
        mean /= max(float(np.linalg.norm(mean)), 1e-12)
    return mean.astype(np.float32)
