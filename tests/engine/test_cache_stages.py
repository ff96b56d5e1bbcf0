"""Texts that were embedded before: their vectors come from the cache, equal to encoded ones."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import redis

from tests.engine.stand import (
    Start,
    assert_vectors,
    blocked,
    busy,
    crashes,
    texts,
    wait_until_tokenised,
)
from tests.fakes import (
    DEADLINE,
    DIMENSIONS,
    NAN,
    POISON,
    UNREADABLE,
    FakeEncoder,
    RecordingSink,
    job_of,
    model_info,
)
from tests.processes import eventually
from worker.cache.entries import Keys
from worker.cache.store import Cache
from worker.contract.outcomes import Outcome
from worker.engine import Engine
from worker.engine.queue import Capacity

REVISIONS = {"fake": b"one", "other": b"two"}


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, socket_timeout=DEADLINE) as client:
        yield client


@pytest.fixture
def start(client: redis.Redis, start: Start) -> Start:
    """Close the engines of these tests before their client is closed."""
    return start


@pytest.fixture
def cache(client: redis.Redis) -> Cache:
    return Cache(Keys(REVISIONS), client, client, queue="embedq", bound=2**24)


@pytest.fixture
def engine(start: Start, encoder: FakeEncoder, cache: Cache) -> Engine:
    return start(encoder, cache=cache)


def events(engine: Engine) -> dict[str, int]:
    return {event: count for event, count in engine.counts.values()["cache_texts"] if count}


def kept(engine: Engine, texts: int) -> None:
    """Wait until so many texts are in the cache."""
    eventually(lambda: events(engine).get("kept", 0) == texts)


def ran(
    engine: Engine, sink: RecordingSink, given: list[object], job_id: str, **how: Any
) -> Outcome:
    engine.submit(job_of(given, job_id, **how))
    return sink.outcome(job_id)


def test_a_text_that_was_embedded_before_is_not_encoded_again(
    engine: Engine, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    first = ran(engine, sink, texts(3), "first")
    kept(engine, 3)
    batches = len(encoder.batches)
    second = ran(engine, sink, texts(3), "second")
    assert len(encoder.batches) == batches
    assert second.vectors.tobytes() == first.vectors.tobytes()
    assert (second.prompt_tokens, second.truncated) == (first.prompt_tokens, first.truncated)
    assert events(engine) == {"miss": 3, "kept": 3, "hit": 3}
    assert engine.waiting_tokens == 0


def test_a_job_that_is_all_remembered_ends_like_any_other(
    engine: Engine, sink: RecordingSink
) -> None:
    ran(engine, sink, texts(2), "first")
    kept(engine, 2)
    ran(engine, sink, texts(2), "second")
    assert sink.of("admit") == ["first", "second"]
    assert sink.of("completed") == ["first", "second"]
    assert sink.threads_of("completed") == {"embedq-write"}
    assert sink.of("started") == ["first"]


def test_a_job_of_known_and_new_texts_gets_each_its_own(
    engine: Engine, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    ran(engine, sink, texts(40), "first")
    kept(engine, 40)
    seen = len(encoder.seen)
    given = [text for pair in zip(texts(40), texts(40, first=100), strict=True) for text in pair]
    mixed = ran(engine, sink, given, "mixed", token_counts=True)
    assert_vectors(mixed.vectors, given)
    assert sorted(encoder.seen[seen:]) == sorted(texts(40, first=100))
    assert mixed.token_counts == [4] * 80
    assert mixed.prompt_tokens == 320
    kept(engine, 80)
    assert events(engine)["hit"] == 40
    assert engine.waiting_tokens == 0


@pytest.mark.parametrize(
    "how",
    [
        {"dimensions": 2},
        {"dimensions": 4, "normalize": False},
        {"normalize": False},
        {"prompt": "query:"},
        {"long": "mean"},
        {"dimensions": 4, "long": "mean", "prompt": "query:"},
    ],
)
def test_options_are_applied_to_the_cached_as_to_the_encoded(
    how: dict[str, Any], engine: Engine, sink: RecordingSink, start: Start
) -> None:
    given = [*texts(3), "word " * 150]
    other = RecordingSink()
    plain = ran(start(FakeEncoder(), sink=other), other, given, "plain", **how)
    ran(engine, sink, given, "default")
    kept(engine, 4)
    first = ran(engine, sink, given, "first", **how)
    eventually(lambda: sum(events(engine).get(event, 0) for event in ("kept", "hit")) == 8)
    second = ran(engine, sink, given, "second", **how)
    assert events(engine)["hit"] >= 4
    for outcome in (first, second):
        np.testing.assert_allclose(outcome.vectors, plain.vectors, rtol=1e-6)
        assert outcome.truncated == plain.truncated
        assert outcome.prompt_tokens == plain.prompt_tokens
    assert first.vectors.tobytes() == second.vectors.tobytes()


def test_fewer_dimensions_come_from_the_same_entry(
    engine: Engine, encoder: FakeEncoder, sink: RecordingSink, start: Start
) -> None:
    other = RecordingSink()
    plain = ran(start(FakeEncoder(), sink=other), other, texts(3), "plain", dimensions=2)
    ran(engine, sink, texts(3), "native")
    kept(engine, 3)
    batches = len(encoder.batches)
    small = ran(engine, sink, texts(3), "small", dimensions=2)
    assert len(encoder.batches) == batches
    assert small.vectors.tobytes() == plain.vectors.tobytes()


def test_a_text_that_was_cut_is_still_an_error_where_that_is_wanted(
    engine: Engine, sink: RecordingSink
) -> None:
    given = ["word " * 100, "short"]
    assert ran(engine, sink, given, "cut").truncated == [0]
    kept(engine, 2)
    assert ran(engine, sink, given, "again").truncated == [0]
    strict = ran(engine, sink, given, "strict", truncate=False)
    assert [(error.index, error.code) for error in strict.errors] == [(0, "text_too_long")]
    assert not strict.truncated


def test_a_text_without_a_vector_is_not_kept(engine: Engine, sink: RecordingSink) -> None:
    given: list[object] = ["good", f"a {NAN}", f"a {POISON}", UNREADABLE, 7, "\ud800"]
    first = ran(engine, sink, given, "first")
    kept(engine, 2)
    second = ran(engine, sink, given, "second")
    assert [error.index for error in first.errors] == [1, 2, 3, 4]
    assert second.errors == first.errors
    assert second.vectors.tobytes() == first.vectors.tobytes()
    assert events(engine)["hit"] == 2


def test_another_model_has_vectors_of_its_own(
    start: Start, encoder: FakeEncoder, sink: RecordingSink, cache: Cache
) -> None:
    other = FakeEncoder(model_info("other"))
    unknown = FakeEncoder(model_info("unknown"))
    engine = start(encoder, other, unknown, cache=cache)
    for at, one in enumerate((encoder, other, unknown)):
        for turn in range(2):
            ran(engine, sink, ["a text"], f"{at}{turn}", info=one.info)
            kept(engine, min(at + 1, 2))
    assert [one.seen.count("a text") for one in (encoder, other, unknown)] == [1, 1, 2]


def test_what_may_have_killed_a_worker_is_encoded_alone(
    engine: Engine, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    ran(engine, sink, ["a text"], "first")
    kept(engine, 1)
    ran(engine, sink, ["a text"], "suspect", isolated=True)
    assert encoder.seen.count("a text") == 2


def test_a_job_that_may_not_start_is_dropped_though_it_is_remembered(
    engine: Engine, sink: RecordingSink
) -> None:
    ran(engine, sink, ["a text"], "first")
    kept(engine, 1)
    sink.refused = {"revoked"}
    engine.submit(job_of(["a text"], "revoked"))
    ran(engine, sink, ["a text"], "next")
    assert sink.of("completed") == ["first", "next"]
    assert engine.waiting_tokens == 0


def test_a_cancelled_job_is_not_told_of_though_it_is_remembered(
    engine: Engine, sink: RecordingSink
) -> None:
    ran(engine, sink, ["a text"], "first")
    kept(engine, 1)
    job = job_of(["a text"], "gone")
    with blocked(sink, "admit") as entry:
        engine.submit(job)
        entry()
        assert engine.cancel(job)
    ran(engine, sink, ["a text"], "next")
    assert sink.of("completed") == ["first", "next"]
    assert engine.waiting_tokens == 0


def test_a_batch_does_not_wait_for_a_look_up(
    engine: Engine, encoder: FakeEncoder, sink: RecordingSink, cache: Cache
) -> None:
    waiting = job_of(texts(40), "waiting")
    with busy(engine, encoder):
        engine.submit(waiting)
        wait_until_tokenised(waiting)
        find, answers = cache.find, threading.Event()
        cache.find = lambda wanted: find(wanted) if answers.wait(DEADLINE) else None  # type: ignore[method-assign]
        engine.submit(job_of(["b text"], "held up"))
    assert_vectors(sink.outcome("waiting").vectors, waiting.texts)
    assert "b text" not in encoder.seen
    answers.set()
    assert_vectors(sink.outcome("held up").vectors, ["b text"])


def test_what_is_remembered_does_not_wait_for_the_batch_that_runs(
    engine: Engine, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    ran(engine, sink, ["a text"], "first")
    kept(engine, 1)
    with busy(engine, encoder):
        ran(engine, sink, ["a text"], "remembered")
        assert "busy" not in sink.outcomes


@pytest.mark.parametrize("kind", ["silent", "absent"])
def test_a_redis_that_is_slow_or_away_costs_nothing_but_the_cache(
    kind: str, start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        if kind == "absent":
            server.close()
        with redis.Redis.from_url(url, socket_timeout=0.05, retry=None) as away:
            cache = Cache(Keys(REVISIONS), away, away, queue="embedq", bound=2**24)
            engine = start(encoder, cache=cache)
            for number in range(20):
                outcome = ran(engine, sink, texts(1, number), f"{number}")
                assert_vectors(outcome.vectors, texts(1, number))
            eventually(lambda: events(engine) == {"unasked": 20, "dropped": 20})


def test_more_than_may_wait_to_be_kept_is_dropped(
    engine: Engine, sink: RecordingSink, cache: Cache
) -> None:
    queue = engine._scheduler.write_cache
    queue._capacity = Capacity(size=20 * 4 * DIMENSIONS)
    keep, entered, leave = cache.keep, threading.Event(), threading.Event()

    def held(entries: dict[bytes, bytes], used: list[bytes]) -> bool:
        entered.set()
        assert leave.wait(DEADLINE)
        return keep(entries, used)

    cache.keep = held  # type: ignore[method-assign]
    ran(engine, sink, texts(1), "first")
    assert entered.wait(DEADLINE)
    ran(engine, sink, texts(20, first=10), "waits")
    ran(engine, sink, texts(5, first=50), "dropped")
    leave.set()
    kept(engine, 21)
    assert events(engine)["dropped"] == 5


@crashes
def test_what_waits_for_the_cache_is_given_back_when_the_engine_closes(
    engine: Engine, sink: RecordingSink
) -> None:
    ran(engine, sink, ["a text"], "first")
    kept(engine, 1)
    with blocked(sink, "admit") as entry:
        engine.submit(job_of(["a text"], "held up"))
        entry()
        engine.submit(job_of(["b text"], "behind"))
        left = engine.close(0.1)
    assert {job.id for job in left} == {"held up", "behind"}
    eventually(lambda: engine.stopped)
    assert sink.of("completed") == ["first"]
