"""A worker with a cache: texts that it has embedded before need no device."""

from __future__ import annotations

import base64
from collections.abc import Callable

import numpy as np
import pytest
from celery.result import AsyncResult

from tests.integration.stand import ANSWER_S, MARKER, TEXTS, Stand, embed_at
from tests.processes import Processes, ValkeyServer, eventually
from worker.contract import keys
from worker.contract.outcomes import Matrix
from worker.tasks import embed

pytestmark = pytest.mark.timeout(120)


def submitted() -> AsyncResult:
    return embed.apply_async((TEXTS,), {"encoding_format": "base64"})


def data(job: AsyncResult) -> bytes:
    return base64.b64decode(job.get(timeout=ANSWER_S)["embeddings"]["data"])


def matrix_of(job: AsyncResult) -> Matrix:
    return np.frombuffer(data(job), dtype="<f4")


def test_a_job_of_known_texts_ends_while_the_device_stands_still(
    processes: Processes, valkey_server: Callable[..., ValkeyServer]
) -> None:
    server = valkey_server()
    with server.client() as client, embed_at(server.url) as app:
        stand = Stand(processes, app, client)
        worker = stand.start(EMBEDQ_CACHE_MB="8")
        first = submitted()
        usage = first.get(timeout=ANSWER_S)["usage"]
        # The texts, and the field with their size.
        eventually(lambda: client.hlen(keys.cache("embedq")) == len(TEXTS) + 1, ANSWER_S)
        jobs: list[AsyncResult] = []

        def one_has_ended() -> AsyncResult | None:
            # On a busy machine Redis may answer a look-up too late, which counts as a miss.
            jobs.append(submitted())
            return next((job for job in jobs if job.ready()), None)

        with stand.busy_device() as go_on:
            known = eventually(one_has_ended, ANSWER_S, interval=0.5)
            go_on()
        assert data(known) == data(first)
        assert known.get()["usage"] == usage
        for job in jobs:
            np.testing.assert_allclose(matrix_of(job), matrix_of(first), atol=1e-5)
            eventually(lambda job=job: stand.record(job.id) == ("succeeded", None), ANSWER_S)
        eventually(stand.idle, ANSWER_S)
        for name in client.keys("embedq:cache*"):
            assert MARKER.encode() not in client.dump(name)
        assert worker.stop() == 0
