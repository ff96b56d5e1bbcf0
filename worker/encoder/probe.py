"""Whether a forward pass gives the library's vectors: decided at load, by trying it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

#: Largest difference to the library, in float32, relative to vectors of unit length.
TOLERANCE = 1e-5
#: Smallest cosine to the library in 16-bit formats, where the order of a sum shows.
MIN_COSINE_16_BIT = 0.999

_WORDS = (
    *("the", "queue", "holds", "texts", "until", "one", "batch"),
    *("is", "full", "of", "them", "and", "the", "model", "runs"),
)
#: Words of each probe text; unequal, so that packing, padding and positions all show.
_PROBE_WORDS = (3, 40, 1, 12, 2, 40, 7)
#: The longest sliding window that is tried, in tokens.
_LONGEST_WINDOW = 1024


def probe_texts(model: SentenceTransformer) -> list[str]:
    """Texts of mixed lengths, one of them longer than the sliding window of the model."""
    counts = list(_PROBE_WORDS)
    if window := sliding_window(model):
        counts.append(min(window, _LONGEST_WINDOW) + 32)
    return [" ".join(_WORDS[i % len(_WORDS)] for i in range(count)) for count in counts]


def sliding_window(model: SentenceTransformer) -> int:
    """Tokens that a layer of the model looks at where it does not look at all, else 0."""
    windows = [getattr(model.config, name, None) for name in ("sliding_window", "local_attention")]
    window = max((window for window in windows if isinstance(window, int)), default=0)
    return window if window < (model.max_seq_length or 0) else 0


def is_beyond_trial(model: SentenceTransformer) -> bool:
    """Whether the model has a sliding window too long for the probe to reach its edge."""
    return sliding_window(model) > _LONGEST_WINDOW


def objection(found: NDArray[np.float32], expected: NDArray[np.float32], exact: bool) -> str | None:
    """Why `found` does not pass for `expected`, both (n, size); None where it does.

    `exact`: float32, where only the last digits may differ; else the 16-bit formats.
    """
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return "vectors are not finite"
    norms = np.linalg.norm(expected, axis=1)
    if exact:
        gap = float(np.abs(found - expected).max(initial=0.0)) / max(1.0, float(norms.max()))
        return None if gap <= TOLERANCE else f"vectors differ by {gap:.1e} from the library's"
    products = norms * np.linalg.norm(found, axis=1)
    cosines = (found * expected).sum(axis=1)[products > 0] / products[products > 0]
    cosine = float(cosines.min(initial=1.0))
    return None if cosine >= MIN_COSINE_16_BIT else f"cosine to the library's is {cosine:.4f}"
