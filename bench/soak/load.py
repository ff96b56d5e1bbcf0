"""Callers that submit jobs, the accepted jobs, and the answers to the others."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import redis
import requests
from celery import Celery
from kombu.exceptions import OperationalError

from bench.soak.audit import Expected, is_right
from bench.soak.sentinels import MASTER
from bench.soak.stage import Stage

#: Share of the REST jobs with a wait, and the seconds of the wait.
_WAITED_FOR, _WAIT_SECONDS = 0.2, 2
#: Share of the REST submissions that are sent again after their answer.
_SENT_AGAIN = 0.05
#: Priorities of direct jobs; the first two are the normal lane, the last is the bulk lane.
_PRIORITIES = (0, 3, 9)
#: Seconds between two tries of a submission after a lost answer, and the maximum number of tries.
_RETRY_PAUSE, _TRIES = 0.3, 200
#: Improper answers that are kept for the report.
_SHOWN = 5


@dataclass
class Accepted:
    """The answers to the callers. Guarded by its lock.

    - `jobs`: accepted jobs with an unread outcome, and their texts
    - `answered`: counts the outcomes that came with the answer, `right` or `wrong`
    - `ids`: the REST jobs of each owner
    - `answers`: counts submissions by their answer
    - `improper`: answers other than 200, 202 and a 503 with its problem and its Retry-After
    """

    jobs: dict[str, list[str]] = field(default_factory=dict)
    total: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    ids: dict[str, set[str]] = field(default_factory=dict)
    replayed: int = 0
    #: Submissions without a known result.
    unknown: int = 0
    #: Keys that returned a second job.
    twice: int = 0
    improper: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, job_id: str, texts: list[str], right: bool | None = None) -> None:
        """Add an accepted job; `right` is None if the answer had no outcome."""
        with self.lock:
            self.total += 1
            if right is None:
                self.jobs[job_id] = texts
            else:
                self.answered["right" if right else "wrong"] += 1

    def count(self, answer: str) -> None:
        with self.lock:
            self.answers[answer] += 1

    @property
    def refused(self) -> int:
        """Submissions refused with a 503, or by a full server."""
        return sum(count for answer, count in self.answers.items() if "refused" in answer)


class Load:
    """Threads that submit at a bounded rate until `stop`.

    REST callers send each submission with its own Idempotency-Key. If the answer is lost, they
    send it again with the same key until they get one: at the end each key has one job.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        rest: int,
        direct: int,
        pause: float,
        seed: int,
        expected: Expected,
        most_texts: int = 40,
    ) -> None:
        """`pause` is the mean between two submissions of a caller, in seconds."""
        self.accepted = Accepted()
        self._most_texts = most_texts
        self._stage = stage
        self._pause = pause
        self._expected = expected
        self._stopping = threading.Event()
        makers = [self._over_rest] * rest + [self._directly] * direct
        self._threads = [
            threading.Thread(
                target=make, args=(random.Random(seed * 1000 + number), number), daemon=True
            )
            for number, make in enumerate(makers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _over_rest(self, rng: random.Random, number: int) -> None:
        caller = RestCaller(self._stage, self.accepted, self._expected, number)
        for serial, texts in self._texts(rng, number):
            wait = _WAIT_SECONDS if rng.random() < _WAITED_FOR else 0
            again = rng.random() < _SENT_AGAIN
            caller.submit(f"{number}-{serial}", texts, wait=wait, again=again)

    def _directly(self, rng: random.Random, number: int) -> None:
        app = _caller(self._stage.url)
        for _, texts in self._texts(rng, number):
            try:
                # Not `ignore_result`: the worker would then store no result.
                result = app.send_task(
                    "embedq.embed", args=[texts], retry=False, priority=rng.choice(_PRIORITIES)
                )
            except (OperationalError, redis.RedisError, OSError) as error:
                if _is_full(error):
                    self.accepted.count("refused: Redis is full")
                    continue
                # The message may have been sent, or not.
                with self.accepted.lock:
                    self.accepted.unknown += 1
                continue
            self.accepted.count("sent")
            self.accepted.add(result.id, texts)

    def _texts(self, rng: random.Random, number: int) -> Iterator[tuple[int, list[str]]]:
        serial = 0
        while not self._stopping.wait(rng.random() * 2 * self._pause):
            serial += 1
            count = 1 if rng.random() < 0.8 else rng.randint(2, self._most_texts)
            yield (
                serial,
                [f"{number}-{serial}-{at} {rng.getrandbits(64):x}" for at in range(count)],
            )


class RestCaller:
    """One caller of `POST /jobs`, used in one thread."""

    def __init__(self, stage: Stage, accepted: Accepted, expected: Expected, number: int) -> None:
        self._stage = stage
        self._accepted = accepted
        self._expected = expected
        self._session = requests.Session()
        owners = stage.owners
        self.owner, secret = owners[number % len(owners)] if owners else ("", "")
        if secret:
            self._session.headers["Authorization"] = f"Bearer {secret}"
        self._pause = threading.Event()

    def submit(
        self, key: str, texts: list[str], *, wait: int = 0, again: bool = False
    ) -> str | None:
        """Submit until the result is known; return the job's id, or None if refused.

        With `again` the submission is repeated after its answer, to simulate a lost answer.
        """
        for _ in range(_TRIES):
            answer = self._post(key, texts, wait)
            if answer is None or _is_unsure(answer):
                self._pause.wait(_RETRY_PAUSE)
                continue
            if answer.status_code not in (200, 202):
                return None
            job = answer.json()
            self._note(job, texts)
            if again:
                self._repeat(key, texts, job["id"])
            return str(job["id"])
        with self._accepted.lock:
            self._accepted.unknown += 1
        return None

    def _post(self, key: str, texts: list[str], wait: int) -> requests.Response | None:
        assert self._stage.api is not None
        headers = {"Idempotency-Key": key} | ({"Prefer": f"wait={wait}"} if wait else {})
        try:
            answer = self._session.post(
                f"{self._stage.api.url}/jobs", json={"input": texts}, headers=headers, timeout=30
            )
        except requests.RequestException:
            self._accepted.count("answer lost")
            return None
        self._accepted.count(self._name(answer))
        return answer

    def _name(self, answer: requests.Response) -> str:
        status = answer.status_code
        if status in (200, 202):
            return f"{status}"
        problem = answer.headers.get("Content-Type", "") == "application/problem+json"
        code = answer.json()["code"] if problem else "no problem+json"
        retry_after = answer.headers.get("Retry-After", "")
        if status != 503 or not problem or not (retry_after.isdigit() and int(retry_after) >= 1):
            with self._accepted.lock:
                self._accepted.improper.append(f"{status} {code}, Retry-After {retry_after!r}")
            return f"improper: {status} {code}"
        return f"refused: 503 {code}"

    def _note(self, job: dict[str, Any], texts: list[str]) -> None:
        right = None
        if job["status"] == "failed":
            right = False
        elif job.get("result") is not None:
            right = is_right(job["result"]["embeddings"], self._expected(texts))
        self._accepted.add(job["id"], texts, right)
        with self._accepted.lock:
            self._accepted.ids.setdefault(self.owner, set()).add(job["id"])

    def _repeat(self, key: str, texts: list[str], job_id: str) -> None:
        answer = self._post(key, texts, 0)
        if answer is not None and answer.status_code in (200, 202):
            with self._accepted.lock:
                self._accepted.replayed += 1
                self._accepted.twice += answer.json()["id"] != job_id


def _is_unsure(answer: requests.Response) -> bool:
    """Return whether the result is unknown: Redis may have run a command without an answer."""
    return answer.status_code == 503 and answer.json().get("code") == "redis_unavailable"


def _is_full(error: BaseException) -> bool:
    """Return whether a full server refused the message, which it then has not stored."""
    causes = (error, error.__cause__, error.__context__)
    return any(isinstance(one, redis.OutOfMemoryError) for one in causes)


def _caller(url: str) -> Celery:
    """Return an independent program's application, on stock Celery."""
    if url.startswith("rediss://"):
        # Stock Celery requires this option.
        url += "&ssl_cert_reqs=CERT_REQUIRED"
    app = Celery(broker=url, backend=url)
    app.conf.task_default_queue = os.environ.get("EMBEDQ_QUEUE", "embedq")
    app.conf.broker_transport_options = {"socket_timeout": 10, "master_name": MASTER}
    app.conf.result_backend_transport_options = {"master_name": MASTER}
    # It reads no results and needs no subscriptions.
    app.backend.on_task_call = lambda *_: None
    return app
