"""One batch through a model that does not like some of its texts."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes import INFINITE, NAN, OPPOSITES, POISON, FakeEncoder, model_info, vector_of
from worker.engine.forward import DeviceLost, Forward
from worker.tokens import TokenBlock


def forward_of(encoder: FakeEncoder, budget: int = 1000) -> Forward:
    return Forward(encoder, budget, encoder.tokenize(["probe"]))


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
    forward = forward_of(encoder)
    vectors, faults = forward.run(encoder.tokenize(texts(5)))
    assert faults == {}
    assert len(encoder.batches) == 1
    assert forward.splits == 0
    assert_vectors(vectors, texts(5), faults)


@pytest.mark.parametrize("poisoned", [[0], [6], [2, 3], [0, 1, 2, 3, 4, 5, 6]])
def test_texts_that_the_model_raises_on_fail_alone(poisoned: list[int]) -> None:
    encoder = FakeEncoder()
    forward = forward_of(encoder)
    given = texts(7)
    for row in poisoned:
        given[row] += f" {POISON}"
    vectors, faults = forward.run(encoder.tokenize(given))
    assert sorted(faults) == poisoned
    assert {fault.code for fault in faults.values()} == {"encode_failed"}
    assert all("ValueError" in fault.message for fault in faults.values())
    assert not any("text" in fault.message for fault in faults.values()), "a text is shown"
    assert_vectors(vectors, given, dict(faults))
    assert forward.budget == 1000


def test_a_culprit_is_found_in_few_passes() -> None:
    encoder = FakeEncoder()
    forward = forward_of(encoder)
    forward.run(encoder.tokenize([*texts(63), POISON]))
    assert len(encoder.batches) <= 2 * 6 + 2
    assert forward.splits == 6


@pytest.mark.parametrize("word", [NAN, INFINITE, OPPOSITES])
def test_a_vector_that_is_not_finite_is_a_fault_and_not_a_result(word: str) -> None:
    encoder = FakeEncoder()
    given = [*texts(3), word, "last"]
    vectors, faults = forward_of(encoder).run(encoder.tokenize(given))
    assert {row: fault.code for row, fault in faults.items()} == {3: "non_finite_vector"}
    assert len(encoder.batches) == 1
    assert_vectors(vectors, given, dict(faults))


def test_infinities_that_cancel_out_are_seen() -> None:
    encoder = FakeEncoder()
    _, faults = forward_of(encoder).run(encoder.tokenize([INFINITE, OPPOSITES, NAN]))
    assert sorted(faults) == [0, 1, 2]


def test_large_finite_vectors_whose_sum_overflows_are_results() -> None:
    class Large(FakeEncoder):
        def forward(self, batch: TokenBlock, *, patient: bool = False) -> np.ndarray:
            return np.full((len(batch), 6), 3e38, dtype=np.float32)

    vectors, faults = forward_of(Large()).run(Large().tokenize(texts(3)))
    assert faults == {}
    assert np.isfinite(vectors).all()


def test_faults_are_blanked_in_arrays_that_cannot_be_written() -> None:
    class Frozen(FakeEncoder):
        def forward(self, batch: TokenBlock, *, patient: bool = False) -> np.ndarray:
            vectors = super().forward(batch)
            vectors.flags.writeable = False
            return vectors

    encoder = Frozen()
    vectors, faults = forward_of(encoder).run(encoder.tokenize(["fine", NAN]))
    assert list(faults) == [1]
    assert_vectors(vectors, ["fine", NAN], dict(faults))


def test_out_of_memory_halves_the_batch_and_the_budget() -> None:
    encoder = FakeEncoder()
    encoder.memory = 15
    forward = forward_of(encoder, budget=40)
    given = texts(10)
    block = encoder.tokenize(given)
    assert block.tokens == 40
    vectors, faults = forward.run(block)
    assert faults == {}
    assert_vectors(vectors, given, {})
    assert forward.budget == 10
    assert encoder.releases == 3, "memory is given back before each new try"


def test_a_text_that_does_not_fit_alone_leaves_the_budget_as_it_was() -> None:
    encoder = FakeEncoder(model_info(max_tokens=500))
    encoder.memory = 30
    forward = forward_of(encoder, budget=64)
    given = ["one two", "word " * 40, "three four"]
    vectors, faults = forward.run(encoder.tokenize(given))
    assert {row: fault.code for row, fault in faults.items()} == {1: "out_of_memory"}
    assert forward.budget == 64
    np.testing.assert_array_equal(vectors[2], vector_of("three four", normalize=False))


def test_memory_is_given_back_only_when_the_failed_pass_holds_none_any_more() -> None:
    held: list[object] = []

    class Tensor:
        def __del__(self) -> None:
            held.remove("tensor")

    class Greedy(FakeEncoder):
        def forward(self, batch: TokenBlock, *, patient: bool = False) -> np.ndarray:
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
    _, faults = forward_of(encoder).run(encoder.tokenize(texts(8)))
    assert faults == {}
    assert encoder.releases == 7


def test_a_device_that_fails_on_everything_is_lost_and_no_text_is_blamed() -> None:
    encoder = FakeEncoder()
    forward = forward_of(encoder)
    encoder.lost = True
    with pytest.raises(DeviceLost):
        forward.run(encoder.tokenize(texts(512)))
    assert len(encoder.batches) <= 12, "it is found out early"


def test_a_device_lost_to_one_text_blames_none_of_its_neighbours() -> None:
    encoder = FakeEncoder()
    forward = forward_of(encoder)

    def lose(batch: list[str]) -> None:
        encoder.lost = encoder.lost or any(POISON in text for text in batch)

    encoder.before = lose
    with pytest.raises(DeviceLost):
        forward.run(encoder.tokenize([*texts(4), POISON, *texts(4)]))
