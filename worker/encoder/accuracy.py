"""How close a reduced number format comes to float32 on this machine: stated at load."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from worker.contract.errors import ModelUnavailable
from worker.contract.models import ModelSpec

_log = logging.getLogger(__name__)

#: Mean cosine to float32 below which a worker refuses to start.
MIN_COSINE = 0.99

#: Plain sentences of several kinds and lengths, beside those of `probe`.
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


def cosines(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each row of two matrices (n, d), float64 (n,); of NaN -1, of equal rows 1."""
    left, right = found.astype(np.float64), expected.astype(np.float64)
    products = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    values = (left * right).sum(axis=1) / np.maximum(products, 1e-30)
    values[(found == expected).all(axis=1)] = 1.0
    finite: NDArray[np.float64] = np.nan_to_num(values, nan=-1.0)
    return finite


def check(spec: ModelSpec, values: NDArray[np.float64], dtype: str, least: float) -> float:
    """Log and return the mean of `cosines` to float32 vectors.

    Raises `ModelUnavailable` if it is below `least`.
    """
    mean, worst = float(values.mean()), float(values.min())
    if not mean >= least:
        raise ModelUnavailable(
            f"model {spec.name!r} in {dtype} has a mean cosine of {mean:.4f} to float32 on this "
            f"machine, below EMBEDQ_MIN_COSINE={least:g}"
        )
    _log.warning(
        "model %s in %s: cosine to float32 %.5f on average, %.5f at worst",
        spec.name,
        dtype,
        mean,
        worst,
    )
    return mean
