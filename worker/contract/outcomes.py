"""Outcomes of jobs as data; `results` has the formats in which they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, order=True)
class TextError:
    """Why one text of a job has no vector."""

    index: int
    code: str
    message: str


@dataclass(slots=True)
class Outcome:
    """What became of a job that has at least one vector.

    Nobody changes one; a frozen class would take three times as long to make.

    `vectors` float32 (n, d), the rows of failed texts zero. `token_counts` one number a text, 0
    where the model has not read it, or empty where nobody asked.
    """

    model: str
    vectors: Matrix
    prompt_tokens: int
    errors: Sequence[TextError] = ()
    truncated: Sequence[int] = ()
    token_counts: Sequence[int] = ()
