"""The cache key of a text: it depends on all inputs of the vector, and does not reveal the text."""

from __future__ import annotations

import numpy as np
import pytest

from worker.cache.entries import Entry, Keys
from worker.contract.jobs import DEFAULT_OPTIONS, JobOptions

KEYS = Keys({"m": b"one", "other": b"two", "alias": b"one"})


def key_of(
    text: str = "a text",
    *,
    model: str = "m",
    prompt: str | None = None,
    options: JobOptions = DEFAULT_OPTIONS,
) -> bytes:
    (key,) = KEYS.of(model, prompt, options, [text])
    assert key is not None
    return key


@pytest.mark.parametrize(
    "change",
    [
        {"text": "a text "},
        {"model": "other"},
        {"prompt": ""},
        {"prompt": "query: "},
        {"options": JobOptions(normalize=False)},
        {"options": JobOptions(long="mean")},
    ],
)
def test_whatever_changes_the_vector_changes_the_key(change: dict[str, object]) -> None:
    assert key_of(**change) != key_of()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        JobOptions(dimensions=2),
        JobOptions(truncate=False),
        JobOptions(encoding_format="base64"),
        JobOptions(token_counts=True),
        JobOptions(prompt_name="query"),
    ],
)
def test_what_is_applied_afterwards_leaves_the_key_alone(options: JobOptions) -> None:
    assert key_of(options=options) == key_of()


def test_one_model_under_two_names_has_one_key() -> None:
    assert key_of(model="alias") == key_of()


def test_a_prompt_and_a_text_cannot_pass_for_others() -> None:
    assert key_of("b text", prompt="a ") != key_of("text", prompt="a b ")


def test_a_key_shows_nothing_of_the_text() -> None:
    keys = {key_of("x" * length) for length in (0, 1, 1000)} | {key_of("\ud800")}
    assert {len(key) for key in keys} == {32}
    assert len(keys) == 4


def test_what_is_no_text_has_no_key_and_an_unknown_model_none_at_all() -> None:
    first, second = KEYS.of("m", None, DEFAULT_OPTIONS, ["a", None])
    assert first is not None
    assert second is None
    assert KEYS.of("unknown", None, DEFAULT_OPTIONS, ["a"]) == []


@pytest.mark.parametrize("truncated", [True, False])
def test_an_entry_comes_back_bit_by_bit(truncated: bool) -> None:
    vector = np.array([1.0, -0.0, 1e-42, np.float32(1) / 3], dtype=np.float32)
    found = Entry.read(Entry(vector, 70_000, truncated).packed(), 4)
    assert found is not None
    assert found.vector.tobytes() == vector.tobytes()
    assert (found.tokens, found.truncated) == (70_000, truncated)


@pytest.mark.parametrize("stored", [None, b"", b"123", Entry(np.ones(3, "f4"), 1, False).packed()])
def test_what_is_no_entry_of_this_size_is_none(stored: bytes | None) -> None:
    assert Entry.read(stored, 4) is None
