"""Batches cut into parts that run at the same time."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from worker.encoder.streams import StreamedForward, Streams, results, split
from worker.tokens import TokenBlock


@pytest.fixture
def streams() -> Iterator[Streams]:
    streams = Streams(2)
    yield streams
    streams.close()


def lengths(*tokens: int) -> NDArray[np.int64]:
    return np.array(tokens, dtype=np.int64)


def block(*tokens: int) -> TokenBlock:
    """Texts of so many tokens, each of which is the number of its text."""
    count = len(tokens)
    ids = np.repeat(np.arange(count, dtype=np.int32), tokens)
    offsets = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int64)
    return TokenBlock(ids, offsets, np.zeros(count, np.int32), np.zeros(count, bool))


class Summing:
    """A forward pass whose vectors are (tokens, sum of ids); it notes the batches it is given."""

    packed = True
    padding = 0

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def __call__(self, batch: TokenBlock) -> NDArray[np.float32]:
        self.seen.append((threading.current_thread().name, len(batch)))
        sums = np.add.reduceat(batch.ids, batch.offsets[:-1])
        return np.stack([batch.lengths, sums], axis=1).astype(np.float32)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_parts_hold_every_text_once_and_about_as_many_tokens_each(count: int) -> None:
    rng = np.random.default_rng(7)
    given = rng.integers(3, 256, size=200)
    parts = split(given, count)
    assert len(parts) == count
    assert sorted(np.concatenate(parts)) == list(range(200))
    tokens = [int(given[part].sum()) for part in parts]
    assert max(tokens) - min(tokens) <= given.max()


def test_a_part_holds_texts_of_similar_length() -> None:
    parts = split(lengths(*[8, 200] * 20), 2)
    assert sum(len(np.unique(lengths(*[8, 200] * 20)[part])) for part in parts) <= 3


@pytest.mark.parametrize(
    "given",
    [
        lengths(512),
        lengths(512, 16),
        lengths(500, 60, 60, 60),
        lengths(16, 16, 16),
        lengths(300, 1, 1),
    ],
)
def test_a_batch_that_cannot_be_shared_fairly_or_is_small_stays_whole(
    given: NDArray[np.int64],
) -> None:
    (whole,) = split(given, 2)
    assert sorted(whole) == list(range(len(given)))


def test_vectors_come_back_in_the_order_of_the_batch(streams: Streams) -> None:
    forward = Summing()
    tokens = [200, 7, 30, 150, 90, 120, 11]
    vectors = StreamedForward(forward, streams)(block(*tokens))
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[:, 0], tokens)
    np.testing.assert_array_equal(vectors[:, 1], np.arange(7) * tokens)
    assert sum(texts for _, texts in forward.seen) == 7
    assert len(forward.seen) == 2
    assert all(name.startswith("embedq-stream-") for name, _ in forward.seen)


def test_a_long_text_runs_with_its_callers_cores_and_a_small_batch_on_one(
    streams: Streams,
) -> None:
    forward = Summing()
    run = StreamedForward(forward, streams)
    run(block(500))
    assert forward.seen.pop() == (threading.current_thread().name, 1)
    np.testing.assert_array_equal(run(block(16, 5)), [[16, 0], [5, 5]])
    ((name, texts),) = forward.seen
    assert name.startswith("embedq-stream-")
    assert texts == 2


def test_a_long_text_that_may_not_run_here_runs_on_one_stream(streams: Streams) -> None:
    forward = Summing()
    StreamedForward(forward, streams, here=False)(block(500))
    ((name, texts),) = forward.seen
    assert name.startswith("embedq-stream-")
    assert texts == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of theirs")
def test_streams_leave_the_cores_to_others_if_told_so() -> None:
    def niceness(_: int) -> int:
        return os.nice(0)

    before = os.nice(0)
    patient, eager = Streams(2, nice=3), Streams(2)
    assert results(patient.start(niceness, [1, 2])) == [before + 3] * 2
    assert results(eager.start(niceness, [1, 2])) == [before] * 2
    assert os.nice(0) == before
    patient.close()
    eager.close()


def test_parts_run_at_the_same_time(streams: Streams) -> None:
    together = threading.Barrier(2)
    assert results(streams.start(lambda _: together.wait(10) >= 0, [1, 2])) == [True, True]


def test_a_part_that_raises_fails_the_batch_and_leaves_the_streams_usable(
    streams: Streams,
) -> None:
    ended = threading.Event()

    def call(number: int) -> int:
        if number == 0:
            raise torch.OutOfMemoryError("too large")
        ended.set()
        return number

    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        results(streams.start(call, [0, 1]))
    # Nothing of a failed batch runs on beside the next one.
    assert ended.is_set()
    assert results(streams.start(call, [1, 2])) == [1, 2]


def test_streams_compute_with_their_own_cores_and_leave_others_theirs(streams: Streams) -> None:
    before = torch.get_num_threads()
    both = threading.Barrier(2)

    def threads(_: int) -> int:
        both.wait(10)
        return torch.get_num_threads()

    assert results(streams.start(threads, [1, 2])) == [1, 1]
    assert torch.get_num_threads() == before
    found: list[int] = []
    late = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    late.start()
    late.join(10)
    assert found == [before]


def test_closing_ends_the_threads() -> None:
    before = set(threading.enumerate())
    streams = Streams(2)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2
    streams.close()
    assert not any(thread.is_alive() for thread in threads)


def test_the_threads_end_when_nobody_holds_the_streams() -> None:
    before = set(threading.enumerate())
    streams = Streams(2)
    threads = set(threading.enumerate()) - before
    del streams
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


class Held(Summing):
    """Does not begin with the texts of one token before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.leave = threading.Event()

    def __call__(self, batch: TokenBlock) -> NDArray[np.float32]:
        if batch.lengths.min() == 1:
            assert self.leave.wait(10)
        return super().__call__(batch)


def test_the_next_batch_begins_on_the_core_that_has_nothing_left_to_do(streams: Streams) -> None:
    forward = Held()
    run = StreamedForward(forward, streams)
    # The longest texts come first, so the second part is the one that is held.
    first = run.begin(block(50, *[1] * 50))
    assert first is not None
    first.wait_for_core()
    second = run.begin(block(40, 40))
    assert second is not None
    np.testing.assert_array_equal(second.vectors(), [[40, 0], [40, 40]])
    forward.leave.set()
    assert first.vectors()[:, 0].tolist() == [50, *[1] * 50]


def test_a_batch_that_needs_all_cores_of_its_caller_does_not_begin_ahead(streams: Streams) -> None:
    assert StreamedForward(Summing(), streams).begin(block(500)) is None
