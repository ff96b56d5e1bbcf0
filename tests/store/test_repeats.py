"""No script of a job's life changes anything when a client sends it again.

redis-py does so when a connection is lost before the answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import orjson
import pytest
import redis

from tests.store.stand import QUEUE, failure, new_job, success
from worker.contract import keys
from worker.contract.jobs import Status
from worker.contract.lanes import Lane
from worker.pool.poison_jobs import PoisonJobs
from worker.store import records, scripts
from worker.store.dead_letters import DeadLetters
from worker.store.file_limits import FileLimits
from worker.store.jobs import (
    Completion,
    Deduplication,
    JobRequest,
    JobStore,
    LeaseKeys,
    QueueCapacity,
)
from worker.store.openai_batch import OpenAIBatch
from worker.store.openai_batches import Claim, OpenAIBatchStore, Superseded
from worker.store.quotas import Quotas

#: Fields that contain times, or names of calls.
CHANGING = {
    *(b"created", b"started", b"finished", b"by", b"kept_until", b"call", b"at", b"kept_from"),
    # Quotas refill meanwhile.
    *(b"1", b"2"),
}
SCRIPTS = {name: text for name, text in vars(scripts).items() if name.isupper() and name[0] != "_"}
RELATIONS = (
    Deduplication(),
    Deduplication("key", "body"),
    Deduplication(fingerprint="body", shared=True),
)
#: Their repeats come at once: a later one would follow other steps of the same job.
IN_ORDER = (
    *("progress", "withdraw", "requeue", "note", "release", "leave"),
    *("file_hold", "file_release"),
)
#: A repeat of it is another claim; it has a test of its own.
NUMBERING = {"BATCH_CLAIM"}
BATCH = OpenAIBatch("batch_1", input_file_id="file-1", created_at=1.0)


class Repeating:
    """A client that runs each script twice and returns the second answer.

    If `late`, some run a third time, after other calls.
    """

    def __init__(self, client: redis.Redis, dice: random.Random, *, late: bool) -> None:
        self.client = client
        self._late = late
        self.ran: set[str] = set()
        self._dice = dice
        self._execute = client.execute_command
        self._earlier: list[tuple[Any, ...]] = []
        client.execute_command = self.execute  # type: ignore[method-assign, assignment]

    def execute(self, *args: Any, **options: Any) -> Any:
        if args[0] not in ("EVALSHA", "EVAL"):
            return self._execute(*args, **options)
        first = self._execute(*args, **options)
        self.note(args)
        again = self._execute(*args, **options)
        assert again == first, "the second answer is another one"
        if self._late and self._earlier and self._dice.random() < 0.3:
            self._execute(*self._dice.choice(self._earlier[-4:]))
        return again

    def note(self, command: tuple[Any, ...]) -> None:
        name = next((n for n, text in SCRIPTS.items() if sha(text) in command[:2]), "")
        self.ran.add(name)
        if name == "WITHDRAW":
            # A job is withdrawn by its caller after its submission has returned: no repeat follows.
            self._earlier.clear()
        if name.lower() not in IN_ORDER:
            self._earlier.append(command)


def sha(text: str) -> str:
    import hashlib

    return hashlib.sha1(text.encode()).hexdigest()


def told(answer: Any) -> Any:
    """An answer to the caller of a shared job, without the changes to the record by its leaving."""
    if not (isinstance(answer, list) and answer and isinstance(answer[0], list)):
        return answer
    flat, outcome = answer
    record = dict(zip(flat[::2], flat[1::2], strict=True))
    return record.get(b"status"), record.get(b"total"), outcome


class Deployment:
    """One database, and all that runs scripts on it."""

    def __init__(self, client: redis.Redis, repeating: Repeating | None) -> None:
        self.client = client
        self.jobs = JobStore(client, QUEUE, result_ttl=600)
        self.quotas = Quotas(client, QUEUE)
        self.letters = DeadLetters(client, QUEUE)
        self.files = FileLimits(client, QUEUE)
        self.batches = OpenAIBatchStore(client, client, QUEUE)
        self.crashes = PoisonJobs(self.jobs, 3)
        self.heartbeat = client.register_script(scripts.HEARTBEAT)
        self.cache = client.register_script(scripts.CACHE)
        if repeating is not None:
            self._repeat_round_trips(repeating)

    def _repeat_round_trips(self, repeating: Repeating) -> None:
        trips = self.jobs._trips
        call = trips.call

        def twice(*commands: Any) -> list[Any]:
            first = call(*commands)
            for command in commands:
                repeating.note(command)
            again = call(*commands)
            assert list(map(told, again)) == list(map(told, first)), "another answer"
            return again

        trips.call = twice  # type: ignore[method-assign]


def state(client: redis.Redis) -> dict[bytes, Any]:
    """The contents of a database, without times, names of calls and heartbeats."""
    found: dict[bytes, Any] = {}
    for key in client.scan_iter(count=1000):
        if b":call:" in key or b":workers:" in key:
            continue
        kind = client.type(key)
        if kind == b"hash":
            fields = {
                re.sub(rb"^kept:\d+", b"kept:", name): value
                for name, value in client.hgetall(key).items()
                if name not in CHANGING
            }
            found[key] = {name: value for name, value in fields.items() if value not in (b"0", b"")}
        elif kind == b"zset":
            found[key] = set(client.zrange(key, 0, -1))
        elif kind == b"set":
            found[key] = client.smembers(key)
        elif kind == b"list":
            found[key] = client.lrange(key, 0, -1)
        else:
            found[key] = re.sub(rb'"date_done":"[^"]*"', b"", client.get(key) or b"")
    return {key: value for key, value in found.items() if value}


def steps(dice: random.Random, number: int, *, fresh: bool) -> Callable[[Deployment], object]:
    """One step in the life of one of a few jobs, the same one for every deployment.

    Ids are submitted again and again, or, if `fresh`, once.
    """
    job_id, owner = f"{dice.randint(0, 9)}", dice.choice(["", "me", "you"])
    if fresh:
        job_id = f"{number - dice.randint(1, 10)}"
    relation = dice.choice(RELATIONS)
    tokens, lane, call = dice.randint(1, 99), dice.choice(list(Lane)), f"call{number}"
    caller = f"call{dice.randint(0, max(number, 1))}"
    bounds = QueueCapacity(tokens=600, owner_tokens=300, bytes=5_000, lane_share=150)
    ended = dice.choice([success(job_id), failure(job_id), Completion(job_id, Status.CANCELLED)])
    tag = f"tag{number}"

    def submit(one: Deployment) -> object:
        job = JobRequest(
            f"{number}" if fresh else job_id,
            2,
            tokens,
            100 * tokens,
            owner=owner,
            lane=lane,
            call=call,
            message=b"x" * tokens,
        )
        return one.jobs.submit(job, bounds, deduplicate=relation)[:3]

    def complete(one: Deployment) -> object:
        one.client.hset("leased", tag, "message")
        one.client.zadd("index", {tag: 1.0})
        ending = ended._replace(tag=tag)
        return one.jobs.complete([ending, success("other", tag=tag)], LeaseKeys("leased", "index"))

    def requeue(one: Deployment) -> object:
        entry = {"tag": "t", "reason": "r", "queue": QUEUE, "buried_at": "1",
                 "message": orjson.dumps({"headers": {"id": job_id}}).decode()}  # fmt: skip
        one.client.lpush(keys.dead_letters(QUEUE), orjson.dumps(entry))
        letter = one.letters.find(job_id)
        assert letter is not None
        return one.letters.requeue(letter)

    def checkpoint(one: Deployment) -> object:
        one.client.hset(keys.batch(BATCH.id), mapping={"status": "in_progress", "epoch": 2})
        done = replace(BATCH, completed=tokens)
        return one.batches.checkpoint(Claim(BATCH, 2), done)

    return dice.choice(
        [
            checkpoint,
            lambda one: one.files.hold(job_id, owner, tokens, 1.0),
            lambda one: one.files.release(job_id),
            lambda one: one.crashes.begin(job_id, tag),
            lambda one: one.cache(keys=["cache", "used"], args=[9999, 1, 60, 1, "a", job_id, tag]),
            *[submit] * 5,
            *[complete] * 3,
            lambda one: one.jobs.cancel(job_id),
            lambda one: one.jobs.withdraw(job_id),
            lambda one: one.jobs.progress([(job_id, 1.0, 1, 2, tokens)]),
            lambda one: one.jobs.note(job_id, b'{"status": "STARTED"}'),
            lambda one: one.jobs.release(job_id, 600),
            lambda one: one.jobs.leave(job_id, owner, caller),
            lambda one: one.jobs.read_and_leave(job_id, owner, caller)[1] is None,
            lambda one: one.jobs.sweep(),
            lambda one: one.jobs._lost._leased_ids(),
            lambda one: one.quotas.take(owner, tokens, requests_limit=9, tokens_limit=900).granted,
            lambda one: one.heartbeat(keys=[keys.workers(QUEUE)], args=["node", 1.0, '"pid":1}']),
            requeue,
        ]
    )


@pytest.fixture
def twice(redis_url: str, redis_client: redis.Redis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url.removesuffix("/0") + "/2") as client:
        yield client


@pytest.mark.timeout(400)
@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_repeated_calls_leave_everything_as_single_ones_do(
    redis_client: redis.Redis, twice: redis.Redis, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than this test takes: the two databases do not expire keys at the same step.
    monkeypatch.setattr(records, "_KEPT_FOR_REPEAT", 600)
    ran: set[str] = set()
    for seed in range(4):
        redis_client.flushall()
        dice = random.Random(seed)
        repeating = Repeating(twice, random.Random(seed), late=late)
        plain, repeated = Deployment(redis_client, None), Deployment(twice, repeating)
        for number in range(150):
            step = steps(dice, number, fresh=late)
            found, expected = step(repeated), step(plain)
            assert found == expected, f"seed {seed}, step {number}"
            states = state(twice), state(redis_client)
            assert states[0] == states[1], f"seed {seed}, step {number}"
        twice.execute_command = repeating._execute  # type: ignore[method-assign]
        ran |= repeating.ran
    assert set(SCRIPTS) - NUMBERING <= ran, "a script was never repeated"


def test_a_repeated_claim_makes_the_first_one_void(redis_client: redis.Redis) -> None:
    batches = OpenAIBatchStore(redis_client, redis_client, QUEUE)
    batches.create(BATCH)
    first, second = batches.claim(BATCH.id), batches.claim(BATCH.id)
    with pytest.raises(Superseded):
        batches.checkpoint(first, BATCH)
    assert batches.checkpoint(second, BATCH) is BATCH.status


def test_a_submission_repeated_late_makes_no_second_job(
    jobs: JobStore, redis_client: redis.Redis
) -> None:
    job = new_job(owner="me")
    for step in (lambda: None, lambda: jobs.cancel("one"), lambda: jobs.release("one", 60)):
        step()
        for relation in RELATIONS:
            assert jobs.submit(job, deduplicate=relation).job_id == "one"
    assert redis_client.llen(QUEUE) == 1


def test_every_script_states_its_contract() -> None:
    for name, text in SCRIPTS.items():
        own = text.removeprefix(scripts._COMMON)
        for word in ("KEYS", "ARGV", "Answer", "Repeat", "Cost"):
            assert re.search(rf"^-- {word}\s", own, re.MULTILINE), f"{name} does not state {word}"


def test_every_script_names_its_keys_and_arguments() -> None:
    for name, text in SCRIPTS.items():
        for line in text.removeprefix(scripts._COMMON).splitlines():
            by_number = re.search(r"\b(KEYS|ARGV)\[\d+\]", line)
            assert not by_number or line.startswith("local "), f"{name}: {line}"


def test_the_scripts_spell_keys_as_the_rest_does() -> None:
    assert f"'{keys.JOB_PREFIX}'" in scripts._COMMON
    assert f"'{keys.RESULT_PREFIX}'" in scripts._COMMON
    assert f"'{keys.EVENTS}'" in scripts._COMMON
    assert keys.quota(QUEUE, "me") == f"{QUEUE}:quota:me"
    assert "queue .. ':quota:' .. owner" in scripts.COMPLETE


def test_a_job_given_twice_in_one_call_ends_once(jobs: JobStore) -> None:
    jobs.submit(new_job())
    ends = [success("one", tag="a"), failure("one")._replace(tag="b")]
    assert jobs.complete(ends) == {1}
    record = jobs.read("one")
    assert record is not None
    assert record.status is Status.SUCCEEDED
