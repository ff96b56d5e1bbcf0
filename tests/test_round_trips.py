"""Commands of many threads share only round trips."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.processes import eventually
from worker.store.pipeline import SharedPipeline


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as pool:
        yield pool


class Gate:
    """A client with round trips that start on the test's signal."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.sizes: list[int] = []
        self.began = threading.Semaphore(0)
        self.may_go = threading.Semaphore(0)
        self.error: BaseException | None = None

    def pipeline(self, *, transaction: bool) -> Any:
        pipe = self._client.pipeline(transaction=transaction)
        execute = pipe.execute

        def gated(*, raise_on_error: bool) -> list[Any]:
            self.sizes.append(len(pipe))
            self.began.release()
            assert self.may_go.acquire(timeout=30)
            error, self.error = self.error, None
            if error is not None:
                raise error
            return execute(raise_on_error=raise_on_error)

        pipe.execute = gated  # type: ignore[method-assign, assignment]
        return pipe


@pytest.fixture
def gate(redis_client: redis.Redis) -> Gate:
    return Gate(redis_client)


def trips_of(gate: Gate) -> SharedPipeline:
    return SharedPipeline(gate)  # type: ignore[arg-type]


def queued(trips: SharedPipeline, count: int) -> None:
    """Wait until so many commands wait for the next round trip."""
    eventually(lambda: len(trips._waiting) == count)


def test_what_comes_during_a_round_trip_goes_together_in_the_next(
    gate: Gate, background: ThreadPoolExecutor
) -> None:
    trips = trips_of(gate)
    answers = [background.submit(trips.call, ("ECHO", "first"))]
    assert gate.began.acquire(timeout=30)
    for number in range(20):
        commands = ("ECHO", str(number)), ("ECHO", "more")
        answers += [background.submit(trips.call, *commands)]
    queued(trips, 20)
    gate.may_go.release(2)
    assert answers[0].result(30) == [b"first"]
    for number, answer in enumerate(answers[1:]):
        assert answer.result(30) == [str(number).encode(), b"more"]
    assert gate.sizes == [1, 40]


def test_a_refused_command_fails_alone(gate: Gate, background: ThreadPoolExecutor) -> None:
    trips = trips_of(gate)
    first = background.submit(trips.call, ("SET", "text", "a"))
    assert gate.began.acquire(timeout=30)
    wrong = background.submit(trips.call, ("INCR", "text"))
    right = background.submit(trips.call, ("GET", "text"))
    queued(trips, 2)
    gate.may_go.release(2)
    first.result(30)
    with pytest.raises(redis.ResponseError, match="not an integer"):
        wrong.result(30)
    assert right.result(30) == [b"a"]


def test_a_server_that_hangs_is_waited_for_once(gate: Gate, background: ThreadPoolExecutor) -> None:
    trips = trips_of(gate)
    gate.error = redis.TimeoutError("nothing came")
    answers = [background.submit(trips.call, ("PING",))]
    assert gate.began.acquire(timeout=30)
    answers += [background.submit(trips.call, ("PING",)) for _ in range(5)]
    queued(trips, 5)
    gate.may_go.release()
    for answer in answers:
        with pytest.raises(redis.TimeoutError):
            answer.result(30)
    gate.may_go.release()
    assert trips.call(("PING",)) == [True]


def test_whoever_is_ended_on_a_round_trip_leaves_the_next_to_others(
    gate: Gate, background: ThreadPoolExecutor
) -> None:
    trips = trips_of(gate)
    gate.error = SystemExit()
    ended = background.submit(trips.call, ("PING",))
    assert gate.began.acquire(timeout=30)
    others = [background.submit(trips.call, ("PING",)) for _ in range(3)]
    queued(trips, 3)
    gate.may_go.release(2)
    with pytest.raises(SystemExit):
        ended.result(30)
    assert [other.result(30) for other in others] == [[True]] * 3


def test_a_script_that_the_server_has_forgotten_is_sent_again(redis_client: redis.Redis) -> None:
    trips = SharedPipeline(redis_client)
    script = trips.script("return {KEYS[1], ARGV[1]}")
    for _ in range(2):
        redis_client.script_flush()
        answers = trips.call(("ECHO", "before"), script(["key"], [1]), ("ECHO", "after"))
        assert answers == [b"before", [b"key", b"1"], b"after"]


def test_a_large_call_keeps_nobody_waiting(gate: Gate, background: ThreadPoolExecutor) -> None:
    trips = trips_of(gate)
    large = background.submit(trips.call, ("SET", "large", b"x" * 1_000_000))
    assert gate.began.acquire(timeout=30)
    small = background.submit(trips.call, ("PING",))
    assert gate.began.acquire(timeout=30)
    gate.may_go.release(2)
    large.result(30)
    small.result(30)
    assert gate.sizes == [1, 1]


def test_a_lost_connection_costs_nobody_an_answer(
    redis_url: str, redis_client: redis.Redis, background: ThreadPoolExecutor
) -> None:
    retry = Retry(NoBackoff(), 5)  # type: ignore[no-untyped-call]
    with redis.Redis.from_url(redis_url, client_name="trips", retry=retry) as client:
        trips = SharedPipeline(client)
        for _ in range(5):
            answers = [background.submit(trips.call, ("INCR", "count")) for _ in range(50)]
            for one in redis_client.client_list():
                if one["name"] == "trips":
                    redis_client.client_kill_filter(_id=one["id"])
            assert all(answer.result(30)[0] > 0 for answer in answers)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_waits_for_nobody_of_its_parent(
    gate: Gate, redis_client: redis.Redis, background: ThreadPoolExecutor
) -> None:
    trips = trips_of(gate)
    answer = background.submit(trips.call, ("PING",))
    assert gate.began.acquire(timeout=30)
    child = os.fork()
    if child == 0:
        try:
            gate.may_go = threading.Semaphore(1)
            os._exit(0 if trips.call(("PING",)) == [True] else 1)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    gate.may_go.release()
    assert answer.result(30) == [True]
