"""Operations on the vectors of a batch or job."""

from __future__ import annotations

import numpy as np

from worker.contract.outcomes import Matrix


def unit(vectors: Matrix) -> Matrix:
    """Rows scaled to unit length as torch's `normalize` does it; zero rows stay zero."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    scaled: Matrix = vectors / np.maximum(norms, 1e-12)[:, None]
    return scaled


def cut_dimensions(vectors: Matrix, size: int | None, *, normalize: bool) -> Matrix:
    """The first `size` dimensions, normalized again (Matryoshka); all of them for None."""
    if size is None or size == vectors.shape[1]:
        return vectors
    cut = np.ascontiguousarray(vectors[:, :size])
    return unit(cut) if normalize else cut
