"""One batch through a model that cannot encode some of its texts."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes import (
    INFINITE,
    NAN,
    OPPOSITES,
    POISON,
    FakeEncoder,
    model_info,
    vector_of,
)
from worker.encoder.tokens import TokenBlock
from worker.engine.encode import BatchEncoder, Closing, DeviceLost


def batch_encoder_of(encoder: FakeEncoder, budget: int = 1000) -> BatchEncoder:
    return BatchEncoder(encoder, budget, encoder.tokenize(["probe"]))


def texts(count: int) -> list[str]:
    return [f"text {number} of some" for number in range(count)]


def assert_vectors(found: np.ndarray, given: list[str], faults: dict[int, object]) -> None:
    for row, text in enumerate(given):
        if row in faults:
            assert not found[row].any()
        else:
            np.testing.assert_array_equal(found[row], vector_of(text, normalize=False))


def test_a_batch_without_faults_runs_once() -> None:
    encoder = FakeEncoder()
    batches = batch_encoder_of(encoder)
    vectors, faults = batches.encode(encoder.tokenize(texts(5)))
    assert faults == {}
    assert len(encoder.batches) == 1
    assert batches.splits == 0
    assert_vectors(vectors, texts(5), faults)


@pytest.mark.parametrize("poisoned", [[0], [6], [2, 3], [0, 1, 2, 3, 4, 5, 6]])
def test_texts_that_the_model_raises_on_fail_alone(poisoned: list[int]) -> None:
    encoder = FakeEncoder()
    batches = batch_encoder_of(encoder)
    given = texts(7)
    for row in poisoned:
        given[row] += f" {POISON}"
    vectors, faults = batches.encode(encoder.tokenize(given))
    assert sorted(faults) == poisoned
    assert {fault.code for fault in faults.values()} == {"encode_failed"}
    assert all("ValueError" in fault.message for fault in faults.values())
    assert not any("text" in fault.message for fault in faults.values()), "a text is shown"
    assert_vectors(vectors, given, dict(faults))
    assert batches.budget == 1000


def test_a_culprit_is_found_in_few_passes() -> None:
    encoder = FakeEncoder()
    batches = batch_encoder_of(encoder)
    batches.encode(encoder.tokenize([*texts(63), POISON]))
    assert len(encoder.batches) <= 2 * 6 + 2
    assert batches.splits == 6


@pytest.mark.parametrize("word", [NAN, INFINITE, OPPOSITES])
def test_a_vector_that_is_not_finite_is_a_fault_and_not_a_result(word: str) -> None:
    encoder = FakeEncoder()
    given = [*texts(3), word, "last"]
    vectors, faults = batch_encoder_of(encoder).encode(encoder.tokenize(given))
    assert {row: fault.code for row, fault in faults.items()} == {3: "non_finite_vector"}
    assert len(encoder.batches) == 1
    assert_vectors(vectors, given, dict(faults))


def test_infinities_that_cancel_out_are_seen() -> None:
    encoder = FakeEncoder()
    _, faults = batch_encoder_of(encoder).encode(encoder.tokenize([INFINITE, OPPOSITES, NAN]))
    assert sorted(faults) == [0, 1, 2]


def test_large_finite_vectors_whose_sum_overflows_are_results() -> None:
    class Large(FakeEncoder):
        def forward(self, batch: TokenBlock, *, cores: int = 1) -> np.ndarray:
            return np.full((len(batch), 6), 3e38, dtype=np.float32)

    vectors, faults = batch_encoder_of(Large()).encode(Large().tokenize(texts(3)))
    assert faults == {}
    assert np.isfinite(vectors).all()


def test_faults_are_blanked_in_arrays_that_cannot_be_written() -> None:
    class Frozen(FakeEncoder):
        def forward(self, batch: TokenBlock, *, cores: int = 1) -> np.ndarray:
            vectors = super().forward(batch)
            vectors.flags.writeable = False
            return vectors

    encoder = Frozen()
    vectors, faults = batch_encoder_of(encoder).encode(encoder.tokenize(["fine", NAN]))
    assert list(faults) == [1]
    assert_vectors(vectors, ["fine", NAN], dict(faults))


def test_out_of_memory_halves_the_batch_and_the_budget() -> None:
    encoder = FakeEncoder()
    encoder.memory = 15
    batches = batch_encoder_of(encoder, budget=40)
    given = texts(10)
    block = encoder.tokenize(given)
    assert block.tokens == 40
    vectors, faults = batches.encode(block)
    assert faults == {}
    assert_vectors(vectors, given, {})
    assert batches.budget == 10
    assert encoder.releases == 3, "memory is given back before each new try"


def test_a_text_that_does_not_fit_alone_leaves_the_budget_as_it_was() -> None:
    encoder = FakeEncoder(model_info(max_tokens=500))
    encoder.memory = 30
    batches = batch_encoder_of(encoder, budget=64)
    given = ["one two", "word " * 40, "three four"]
    vectors, faults = batches.encode(encoder.tokenize(given))
    assert {row: fault.code for row, fault in faults.items()} == {1: "out_of_memory"}
    assert batches.budget == 64
    np.testing.assert_array_equal(vectors[2], vector_of("three four", normalize=False))


def test_memory_is_given_back_only_when_the_failed_pass_holds_none_any_more() -> None:
    held: list[object] = []

    class Tensor:
        def __del__(self) -> None:
            held.remove("tensor")

    class Greedy(FakeEncoder):
        def forward(self, batch: TokenBlock, *, cores: int = 1) -> np.ndarray:
            held.append("tensor")
            tensor = Tensor()
            vectors = super().forward(batch)
            del tensor
            return vectors

        def release_memory(self) -> None:
            assert held == []
            super().release_memory()

    encoder = Greedy()
    encoder.memory = 4
    _, faults = batch_encoder_of(encoder).encode(encoder.tokenize(texts(8)))
    assert faults == {}
    assert encoder.releases == 7


def test_full_batches_recover_a_budget_that_was_halved() -> None:
    encoder = FakeEncoder()
    encoder.memory = 512
    batches = batch_encoder_of(encoder, budget=1024)
    batches.encode(encoder.tokenize(texts(256)))
    assert batches.budget == 512
    encoder.memory = None
    full, small = encoder.tokenize(texts(256)), encoder.tokenize(texts(3))
    batches.encode(small)
    assert batches.budget == 512, "a small batch shows nothing"
    budgets = []
    for _ in range(130):
        batches.encode(full)
        budgets.append(batches.budget)
    assert budgets[0] == 516
    assert budgets[-1] == 1024


def test_a_full_device_is_tried_again_until_it_has_memory() -> None:
    encoder = FakeEncoder()
    batches = batch_encoder_of(encoder)
    given = texts(8)
    block = encoder.tokenize(given)
    encoder.memory = 0
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        if len(pauses) == 9:
            encoder.memory = None
        return True

    batches.pause = pause
    vectors, faults = batches.encode(block)
    assert faults == {}
    assert_vectors(vectors, given, {})
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_a_text_that_does_not_fit_fails_after_a_full_device_has_memory_again() -> None:
    encoder = FakeEncoder(model_info(max_tokens=500))
    batches = batch_encoder_of(encoder)
    block = encoder.tokenize(["word " * 40])
    encoder.memory = 0

    def pause(_: float) -> bool:
        encoder.memory = 30
        return True

    batches.pause = pause
    _, faults = batches.encode(block)
    assert {row: fault.code for row, fault in faults.items()} == {0: "out_of_memory"}


def test_a_full_device_does_not_keep_a_closing_engine() -> None:
    encoder = FakeEncoder()
    batches = batch_encoder_of(encoder)
    encoder.memory = 0
    batches.pause = lambda _: False
    with pytest.raises(Closing):
        batches.encode(encoder.tokenize(texts(4)))


def test_a_lost_device_is_reported_at_once_and_no_text_is_blamed() -> None:
    encoder = FakeEncoder()
    batches = batch_encoder_of(encoder)
    encoder.lost = True
    with pytest.raises(DeviceLost, match="device-side assert"):
        batches.encode(encoder.tokenize(texts(512)))
    assert len(encoder.batches) == 1


def test_a_device_that_fails_on_everything_is_lost_and_no_text_is_blamed() -> None:
    encoder = FakeEncoder()
    batches = batch_encoder_of(encoder)
    block = encoder.tokenize(texts(512))

    def fail(_: list[str]) -> None:
        raise RuntimeError("something unknown")

    encoder.before = fail
    with pytest.raises(DeviceLost):
        batches.encode(block)
    assert len(encoder.batches) <= 12, "it is found out early"


def test_a_device_lost_to_one_text_blames_none_of_its_neighbours() -> None:
    encoder = FakeEncoder()
    batches = batch_encoder_of(encoder)

    def lose(batch: list[str]) -> None:
        encoder.lost = encoder.lost or any(POISON in text for text in batch)

    encoder.before = lose
    with pytest.raises(DeviceLost):
        batches.encode(encoder.tokenize([*texts(4), POISON, *texts(4)]))
