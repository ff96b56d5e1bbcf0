"""A batch and its jobs: join the tokens of pieces, return rows and faults to their jobs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from worker.contract.outcomes import Matrix
from worker.encoder.tokens import TokenBlock
from worker.engine.encode import Fault
from worker.engine.job import Job, Piece
from worker.engine.vectors import unit


def joined(pieces: Sequence[Piece]) -> TokenBlock:
    """The tokens of a batch. Neighbours in a block, as most one-text jobs are, become one slice."""
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
    """The rows of each piece of `vectors`, float32 (texts of the batch, d), normalized or not."""
    scaled = vectors
    if any(piece.job.options.normalize for piece in pieces):
        scaled = unit(vectors)
    row = 0
    for piece in pieces:
        rows = scaled if piece.job.options.normalize else vectors
        yield piece, rows[row : row + piece.texts]
        row += piece.texts


def faults_of(
    pieces: Sequence[Piece], faults: Mapping[int, Fault]
) -> Iterator[tuple[Job, int, Fault]]:
    """The faulty rows of a batch as rows of their jobs."""
    ends = list(accumulate(piece.texts for piece in pieces)) if faults else []
    for row, fault in faults.items():
        at = bisect_right(ends, row)
        piece = pieces[at]
        yield piece.job, piece.first + row - (ends[at] - piece.texts), fault
