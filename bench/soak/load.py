"""Who submits jobs, and which of them were accepted."""

from __future__ import annotations

import os
import random
import threading
from dataclasses import dataclass, field

import requests
from celery import Celery
from kombu.exceptions import OperationalError

from bench.soak.stage import Stage


@dataclass
class Accepted:
    """Jobs that somebody was told are accepted, with their texts. Guarded by its lock."""

    jobs: dict[str, list[str]] = field(default_factory=dict)
    refused: int = 0
    unknown: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, job_id: str, texts: list[str]) -> None:
        with self.lock:
            self.jobs[job_id] = texts

    def count(self, name: str) -> None:
        with self.lock:
            setattr(self, name, getattr(self, name) + 1)


class Load:
    """Threads that submit at a bounded rate until told to stop."""

    def __init__(self, stage: Stage, *, rest: int, direct: int, pause: float, seed: int) -> None:
        self.accepted = Accepted()
        self._stage = stage
        self._pause = pause
        self._stopping = threading.Event()
        makers = [self._over_rest] * rest + [self._directly] * direct
        self._threads = [
            threading.Thread(target=make, args=(random.Random(seed * 1000 + number), number))
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
        assert self._stage.api is not None
        session = requests.Session()
        serial = 0
        while not self._stopping.wait(rng.random() * 2 * self._pause):
            serial += 1
            texts = _texts(rng, number, serial)
            try:
                answer = session.post(
                    f"{self._stage.api.url}/jobs", json={"input": texts}, timeout=30
                )
            except requests.RequestException:
                self.accepted.count("unknown")
                continue
            if answer.status_code == 202:
                self.accepted.add(answer.json()["id"], texts)
            else:
                self.accepted.count("refused")

    def _directly(self, rng: random.Random, number: int) -> None:
        app = _caller(self._stage.valkey.url)
        serial = 0
        while not self._stopping.wait(rng.random() * 2 * self._pause):
            serial += 1
            texts = _texts(rng, number, serial)
            try:
                # Not `ignore_result`: that would tell the worker to store none.
                result = app.send_task("embedq.embed", args=[texts], retry=False)
            except (OperationalError, OSError):
                # It may have been sent, or not.
                self.accepted.count("unknown")
                continue
            self.accepted.add(result.id, texts)


def _caller(url: str) -> Celery:
    """A program of somebody else's, on stock Celery."""
    app = Celery(broker=url, backend=url)
    app.conf.task_default_queue = os.environ.get("EMBEDQ_QUEUE", "embedq")
    app.conf.broker_transport_options = {"socket_timeout": 10}
    # It reads no results, so it need not subscribe to any.
    app.backend.on_task_call = lambda *_: None
    return app


def _texts(rng: random.Random, number: int, serial: int) -> list[str]:
    count = 1 if rng.random() < 0.8 else rng.randint(2, 40)
    return [f"{number}-{serial}-{index} {rng.getrandbits(64):x}" for index in range(count)]
