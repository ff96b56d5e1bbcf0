"""Batches run in rectangles through a graph, several at a time."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.processes import eventually
from worker.encoder.rectangles import rectangles
from worker.packing import GroupCost
from worker.tokens import TokenBlock

openvino = pytest.importorskip("openvino")
RectangleForward = pytest.importorskip("worker.encoder.openvino_forward").RectangleForward

COST = GroupCost(fixed=32.0, knee=512.0)


def block(*tokens: int) -> TokenBlock:
    """Texts of so many tokens, each of which is the number of its text, from 1."""
    count = len(tokens)
    ids = np.repeat(np.arange(1, count + 1, dtype=np.int32), tokens)
    offsets = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int64)
    return TokenBlock(ids, offsets, np.zeros(count, np.int32), np.zeros(count, bool))


def summing() -> Any:
    """A graph whose vectors are (sum of ids, tokens, 0) of each text."""
    from openvino import opset13 as op

    ids, mask = (op.parameter([-1, -1], np.int64, name) for name in ("ids", "mask"))
    sums = [op.reduce_sum(each, [1], keep_dims=True) for each in (ids, mask)]
    zero = op.subtract(sums[0], sums[0])
    return openvino.Model([op.convert(op.concat([*sums, zero], 1), "f32")], [ids, mask])


def fussy() -> Any:
    """A graph that fails for rectangles whose cells cannot be put in fours."""
    from openvino import opset13 as op

    ids, mask = (op.parameter([-1, -1], np.int64, name) for name in ("ids", "mask"))
    fours = op.reshape(op.convert(op.add(ids, mask), "f32"), op.constant(np.array([-1, 4])), False)
    return openvino.Model([fours], [ids, mask])


def expected(batch: TokenBlock) -> NDArray[np.float32]:
    sums = np.add.reduceat(batch.ids, batch.offsets[:-1])
    return np.stack([sums, batch.lengths], axis=1).astype(np.float32)


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 40, 400])
def test_vectors_come_back_in_the_order_of_the_batch(cores: int, count: int) -> None:
    forward = RectangleForward(summing(), "f32", cores, 0, 2)
    batch = block(*np.random.default_rng(count).integers(1, 90, count).tolist())
    vectors = forward(batch)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    np.testing.assert_array_equal(vectors, expected(batch))


def test_padding_is_counted() -> None:
    forward = RectangleForward(summing(), "f32", 2, 0, None)
    forward(block(9, 9, 9))
    assert forward.padding == 0
    forward(block(9, 7, 9))
    assert forward.padding == 2


def test_a_rectangle_that_fails_fails_its_batch_and_no_other() -> None:
    forward = RectangleForward(fussy(), "f32", 2, 0, None)
    with pytest.raises(RuntimeError, match="Reshape"):
        forward(block(4, 203, 300, 4))
    np.testing.assert_array_equal(forward(block(4)), [[2, 2, 2, 2]])
    forward.forget_buffers()
    np.testing.assert_array_equal(forward(block(4)), [[2, 2, 2, 2]])


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux does")
def test_threads_end_with_the_object() -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def use() -> None:
        RectangleForward(summing(), "f32", 2, 0, None)(block(*[60] * 60))
        gc.collect()

    use()
    # What OpenVINO keeps for the process is there by now.
    kept = threads()
    for _ in range(5):
        use()
    eventually(lambda: threads() <= kept + 1)


def test_rectangles_are_cut_to_so_many_cells_and_padded_to_their_own_longest() -> None:
    batch = block(*[10] * 30, *[11] * 30, 300)
    parts = list(rectangles(batch, COST, 0, 256))
    assert sorted(np.concatenate([part.texts for part in parts])) == list(range(61))
    assert [part.ids.shape for part in parts] == [(20, 10), (20, 11), (20, 11), (1, 300)]
    assert [part.padding for part in parts] == [0, 10, 0, 0]
    assert [part.ids.size for part in rectangles(batch, COST, 0)] == [660, 300]
