"""A fake model, a sink that records events, and engines that end with the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.engine.stand import EngineWith, Start
from tests.fakes import DEADLINE, FakeEncoder, RecordingSink
from worker.cache.store import Cache
from worker.engine import Engine


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


@pytest.fixture
def start(sink: RecordingSink) -> Iterator[Start]:
    """Starts engines that end with the test."""
    with ExitStack() as stack:

        def make(
            *encoders: FakeEncoder, sink: RecordingSink = sink, cache: Cache | None = None
        ) -> Engine:
            engine = EngineWith(sink, encoders, cache)
            engine.start()
            stack.callback(engine.close, DEADLINE)
            return engine

        yield make
