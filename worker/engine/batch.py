"""A batch and its jobs: the tokens of its pieces go in as one block, its rows come back to them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np

from worker.contract.outcomes import Matrix
from worker.encoder.tokens import TokenBlock
from worker.engine.forward import Fault
from worker.engine.job import Job, Piece


def joined(pieces: Sequence[Piece]) -> TokenBlock:
    """The tokens of a batch; neighbours in a block, as one-text jobs mostly are, as one slice."""
    parts: list[TokenBlock] = []
    block, start, stop = pieces[0].block, pieces[0].start, pieces[0].stop
    for piece in pieces[1:]:
        if piece.block is block and piece.start == stop:
            stop = piece.stop
            continue
        parts.append(block.slice(start, stop))
        block, start, stop = piece.block, piece.start, piece.stop
    parts.append(block.slice(start, stop))
    return TokenBlock.join(parts)


def rows_of(pieces: Sequence[Piece], vectors: Matrix) -> Iterator[tuple[Piece, Matrix]]:
    """The rows of each piece of `vectors`, float32 (texts of the batch, d), normalised or not."""
    unit = vectors
    if any(piece.job.options.normalize for piece in pieces):
        unit = _unit(vectors)
    row = 0
    for piece in pieces:
        rows = unit if piece.job.options.normalize else vectors
        yield piece, rows[row : row + piece.texts]
        row += piece.texts


def faults_of(
    pieces: Sequence[Piece], faults: Mapping[int, Fault]
) -> Iterator[tuple[Job, int, Fault]]:
    """The faulty rows of a batch as those of their jobs."""
    ends = list(accumulate(piece.texts for piece in pieces)) if faults else []
    for row, fault in faults.items():
        at = bisect_right(ends, row)
        piece = pieces[at]
        yield piece.job, piece.first + row - (ends[at] - piece.texts), fault


def cut_dimensions(job: Job) -> None:
    """Matryoshka: the first dimensions, normalised again. Only models trained for it get here."""
    size = job.options.dimensions
    if size is None or job.vectors is None or size == job.vectors.shape[1]:
        return
    vectors = np.ascontiguousarray(job.vectors[:, :size])
    job.vectors = _unit(vectors) if job.options.normalize else vectors


def _unit(vectors: Matrix) -> Matrix:
    """Rows scaled to unit length as torch's `normalize` does it; zero rows stay zero."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    unit: Matrix = vectors / np.maximum(norms, 1e-12)[:, None]
    return unit
