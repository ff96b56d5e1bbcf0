"""Comparison of vectors with the library's: of a forward pass, and of a number format."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from worker.contract.errors import ModelUnavailable
from worker.contract.models import ModelSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_log = logging.getLogger(__name__)

#: Largest difference to the library, in float32, relative to vectors of unit length.
TOLERANCE = 1e-5
#: Smallest cosine to the library in 16-bit formats, where the order of a sum shows.
MIN_COSINE_16_BIT = 0.999

#: Sentences of several kinds and lengths, to compare number formats.
TEXTS = (
    "How do I reset my password?",
    "The invoice of March has not been paid yet, and the reminder came back.",
    "A cat sat on the mat while the rain fell outside.",
    "Parallel garbage collection reduces pause times at the cost of throughput.",
    "Best Italian restaurants near the old harbour",
    "In 1969, two people walked on the Moon for the first time; a third one stayed in orbit.",
    "error: connection refused",
    "She sold the house in spring, bought a boat, and was not seen again before the winter, when "
    "letters from distant ports began to arrive at her sister's door, each with a different stamp.",
)
#: Words of each probe text; unequal, to reveal errors of packing, padding and positions.
_PROBE_WORDS = (3, 40, 1, 12, 2, 40, 7)
_WORDS = (
    *("the", "queue", "holds", "texts", "until", "one", "batch"),
    *("is", "full", "of", "them", "and", "the", "model", "runs"),
)
#: The longest sliding window that a probe text exceeds, in tokens.
_LONGEST_WINDOW = 1024


def probe_texts(model: SentenceTransformer) -> list[str]:
    """Texts of mixed lengths; one of them is longer than the sliding window of the model."""
    counts = list(_PROBE_WORDS)
    if window := sliding_window(model):
        counts.append(min(window, _LONGEST_WINDOW) + 32)
    return [repeat_words(_WORDS, count) for count in counts]


def repeat_words(words: Sequence[str], count: int) -> str:
    """A text of `count` words, taken from `words` in turn."""
    return " ".join(words[index % len(words)] for index in range(count))


def sliding_window(model: SentenceTransformer) -> int:
    """The window of a layer with sliding-window attention, in tokens; 0 without such a layer."""
    windows = [getattr(model.config, name, None) for name in ("sliding_window", "local_attention")]
    window = max((window for window in windows if isinstance(window, int)), default=0)
    return window if window < (model.max_seq_length or 0) else 0


def exceeds_probe(model: SentenceTransformer) -> bool:
    """Whether the model has a sliding window too long for a probe text to reach its edge."""
    return sliding_window(model) > _LONGEST_WINDOW


def objection(found: NDArray[np.float32], expected: NDArray[np.float32], exact: bool) -> str | None:
    """Return how `found` differs from `expected`, both (n, size); None if it is close enough.

    `exact`: float32, with differences in the last digits only; else a 16-bit format.
    """
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return "vectors are not finite"
    if not exact:
        cosine = float(cosines(found, expected).min(initial=1.0))
        return None if cosine >= MIN_COSINE_16_BIT else f"cosine to the library's is {cosine:.4f}"
    longest = max(1.0, float(np.linalg.norm(expected, axis=1).max()))
    gap = float(np.abs(found - expected).max(initial=0.0)) / longest
    return None if gap <= TOLERANCE else f"vectors differ by {gap:.1e} from the library's"


def cosines(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each row of two matrices (n, d), float64 (n,); of NaN -1, of equal rows 1."""
    left, right = found.astype(np.float64), expected.astype(np.float64)
    products = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    values = (left * right).sum(axis=1) / np.maximum(products, 1e-30)
    values[(found == expected).all(axis=1)] = 1.0
    finite: NDArray[np.float64] = np.nan_to_num(values, nan=-1.0)
    return finite


def check_cosine(
    spec: ModelSpec, values: NDArray[np.float64], dtype: str, min_cosine: float
) -> float:
    """Log and return the mean of `cosines` to float32 vectors.

    Raises `ModelUnavailable` if it is below `min_cosine`.
    """
    mean, worst = float(values.mean()), float(values.min())
    if not mean >= min_cosine:
        raise ModelUnavailable(
            f"model {spec.name!r} in {dtype} has a mean cosine of {mean:.4f} to float32 on this "
            f"machine, below EMBEDQ_MIN_COSINE={min_cosine:g}"
        )
    message = "model %s in %s: cosine to float32 %.5f on average, %.5f at worst"
    _log.warning(message, spec.name, dtype, mean, worst)
    return mean
