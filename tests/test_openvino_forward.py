"""Batches run in rectangles through a graph, several at a time."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.processes import eventually
from worker.encoder.packing import GroupCost
from worker.encoder.rectangles import Rectangle, recurring_rectangles
from worker.encoder.tokens import TokenBlock

# The libraries of this backend take seconds to load and to convert a model.
pytestmark = pytest.mark.slow

openvino = pytest.importorskip("openvino")
RectangleForward = pytest.importorskip("worker.encoder.openvino_backend.forward").RectangleForward

COST = GroupCost(fixed=12.0, knee=512.0)


def block(*tokens: int) -> TokenBlock:
    """Texts of these token counts; each token is the number of its text, from 1."""
    count = len(tokens)
    ids = np.repeat(np.arange(1, count + 1, dtype=np.int32), tokens)
    offsets = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int64)
    return TokenBlock(ids, offsets, np.zeros(count, np.int32), np.zeros(count, bool))


def opened(graph: Any, cores: int, dimensions: int | None = None) -> Any:
    return RectangleForward(graph, "f32", cores, pad_id=0, limit=None, dimensions=dimensions)


def summing() -> Any:
    """A graph with the vector (sum of ids, tokens, 0) for each text."""
    from openvino import opset13 as op

    ids, mask = (op.parameter([-1, -1], np.int64, name) for name in ("ids", "mask"))
    sums = [op.reduce_sum(each, [1], keep_dims=True) for each in (ids, mask)]
    zero = op.subtract(sums[0], sums[0])
    return openvino.Model([op.convert(op.concat([*sums, zero], 1), "f32")], [ids, mask])


def fussy() -> Any:
    """A graph that fails for any length but 4."""
    from openvino import opset13 as op

    ids, mask = (op.parameter([-1, -1], np.int64, name) for name in ("ids", "mask"))
    both = op.add(op.add(ids, mask), op.constant(np.zeros((1, 4), np.int64)))
    return openvino.Model([op.convert(both, "f32")], [ids, mask])


def expected(batch: TokenBlock) -> NDArray[np.float32]:
    sums = np.add.reduceat(batch.ids, batch.offsets[:-1])
    return np.stack([sums, batch.lengths], axis=1).astype(np.float32)


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 40, 400])
def test_vectors_come_back_in_the_order_of_the_batch(cores: int, count: int) -> None:
    forward = opened(summing(), cores, 2)
    batch = block(*np.random.default_rng(count).integers(1, 90, count).tolist())
    vectors = forward(batch)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    np.testing.assert_array_equal(vectors, expected(batch))


def test_padding_is_counted() -> None:
    forward = opened(summing(), 2)
    forward(block(8, 8, 8))
    assert forward.padding == 0
    forward(block(8, 7, 8))
    assert forward.padding == 1


def test_a_rectangle_that_fails_fails_its_batch_and_no_other() -> None:
    forward = opened(fussy(), 2)
    with pytest.raises(RuntimeError, match="Exception"):
        forward(block(4, 203, 300, 4))
    np.testing.assert_array_equal(forward(block(4)), [[2, 2, 2, 2]])
    forward.release_buffers()
    np.testing.assert_array_equal(forward(block(4)), [[2, 2, 2, 2]])


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux does")
def test_batches_of_several_threads_get_their_own_vectors() -> None:
    forward = opened(summing(), 2)
    batches = [block(*[size] * 40) for size in (3, 9, 20, 60)]
    expected = [forward(batch) for batch in batches]
    with ThreadPoolExecutor(3) as slots:
        for _ in range(20):
            found = slots.map(forward, batches, (1, 2, 1, 2))
            for own, want in zip(found, expected, strict=True):
                np.testing.assert_allclose(own, want, rtol=1e-5)


def test_threads_end_with_the_object() -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def use() -> None:
        opened(summing(), 2)(block(*[60] * 60))
        gc.collect()

    use()
    # By now all of OpenVINO's process-wide threads exist.
    kept = threads()
    for _ in range(5):
        use()
    eventually(lambda: threads() <= kept + 1)


@pytest.mark.parametrize("limit", [7, 512])
def test_every_core_is_prepared_for_a_short_text_of_any_length(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = RectangleForward(summing(), "f32", 2, pad_id=0, limit=limit, dimensions=None)
    met: list[tuple[int, ...]] = []
    run = forward._completed

    def noting(parts: list[Rectangle]) -> Any:
        met.extend(part.ids.shape for part in parts)
        return run(parts)

    monkeypatch.setattr(forward, "_completed", noting)
    forward.prepare()
    prepared = set(met)
    assert len(met) == 3 * len(prepared)
    assert max(length for _, length in prepared) <= limit
    met.clear()
    for tokens in range(1, min(limit, 32) + 1):
        forward(block(tokens))
    assert set(met) <= prepared


def test_a_rectangle_is_padded_to_the_length_of_its_shape_and_no_text_beyond_the_limit() -> None:
    batch = block(*[9] * 4, 33, 129, 130)
    parts = list(recurring_rectangles(batch, COST, 7, 256, 130))
    assert [part.ids.shape for part in parts] == [(4, 10), (1, 36), (1, 130), (1, 130)]
    assert [part.padding for part in parts] == [4, 3, 1, 0]
    assert parts[0].ids[0].tolist() == [1] * 9 + [7]
    np.testing.assert_array_equal(np.concatenate([part.texts for part in parts]), np.arange(7))
