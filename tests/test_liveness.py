"""The live workers, from their heartbeats. Pure."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from worker.store.worker_registry import SILENCE, live_workers

NOW = 1_800_000_000.0


def presence(name: str = "tiny", *, at: float = NOW, rate: float | None = 10.0) -> bytes:
    model: dict[str, Any] = {
        "name": name,
        "dimensions": 4,
        "max_tokens": 256,
        "device": "cpu",
        "backend": "torch",
        "dtype": "float32",
        "packed": True,
        "batch_tokens": 1024,
        "matryoshka": [2],
        "a_field_of_a_newer_worker": 1,
    }
    return orjson.dumps({"at": at, "models": [model], "tokens_per_second": rate})


def test_workers_are_counted_with_their_models_and_rates() -> None:
    workers = live_workers({b"a": presence("one"), b"b": presence("two", rate=None)}, NOW)
    assert workers.count == 2
    assert list(workers.models) == ["one", "two"]
    assert workers.models["one"].matryoshka == (2,)
    assert workers.tokens_per_second == 10.0


def test_a_worker_of_an_earlier_version_names_no_path() -> None:
    assert live_workers({b"a": presence()}, NOW).models["tiny"].path == ""


def test_a_silent_worker_does_not_count() -> None:
    silent = presence(at=NOW - SILENCE - 1)
    assert live_workers({b"a": silent}, NOW).count == 0
    assert live_workers({b"a": presence(at=NOW - SILENCE + 1)}, NOW).count == 1


@pytest.mark.parametrize("nonsense", [b"{nope", b"[]", b"{}", b'{"models": [{}], "at": 1}', b"1"])
def test_a_worker_that_speaks_nonsense_does_not_hide_the_others(nonsense: bytes) -> None:
    workers = live_workers({b"a": nonsense, b"b": presence()}, NOW)
    assert workers.count == 1
    assert list(workers.models) == ["tiny"]
