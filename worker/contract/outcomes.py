"""Outcomes of jobs as data, which is all that the engine uses. `results` has their stored form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, order=True)
class TextError:
    """The reason for the missing vector of one text of a job."""

    index: int
    code: str
    message: str


@dataclass(slots=True)
class Outcome:
    """The outcome of a job that has at least one vector.

    Never changed; a frozen class would take three times as long to make.

    `vectors` float32 (n, d), the rows of failed texts zero. `token_counts` one number a text, 0
    if the model has not read it, or empty if the job does not ask for it.
    """

    model: str
    vectors: Matrix
    prompt_tokens: int
    errors: Sequence[TextError] = ()
    truncated: Sequence[int] = ()
    token_counts: Sequence[int] = ()
