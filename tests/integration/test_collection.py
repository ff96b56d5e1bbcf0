"""A large collection through the Celery task, on a real worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.conftest import Service
from tests.processes import eventually, run_python

PROGRAM = """
import itertools
import numpy as np
from worker import app
from worker.collection import embed_all
from worker.contract.errors import JobFailed
from worker.contract.outcomes import TextError
from worker.store.celery_jobs import store_of
from worker.tasks import embed

read = []

def texts():
    for number in itertools.count():
        read.append(number)
        yield None if number in (5, 64, 65) else f"text number {number}"

# In order, a bounded part of an endless collection, texts that fail in their places.
found = list(itertools.islice(embed_all(texts(), texts_a_job=2, jobs=3), 70))
bad = [at for at, one in enumerate(found) if isinstance(one, TextError)]
assert bad == [found[at].index for at in bad] == [5, 64, 65], bad
assert {found[at].code for at in bad} == {"invalid_text"}
assert len(read) <= 70 + 2 * 3, len(read)
alone = embed.delay(["text number 7", "text number 69"]).get(timeout=30)["embeddings"]
np.testing.assert_allclose(found[7], alone[0], atol=1e-5)
np.testing.assert_allclose(found[69], alone[1], atol=1e-5)
assert found[7].dtype == np.float32

assert list(embed_all([])) == []
try:
    list(embed_all(["a", "b"], model="none"))
except JobFailed as error:
    assert error.code == "model_not_found"
else:
    raise AssertionError("a model that is not served was taken")
print("as it should be")
"""


@pytest.fixture
def client(service: Service) -> Iterator[redis.Redis]:
    with service.valkey.client() as found:
        yield found


def test_a_collection_is_embedded_in_order_and_nothing_of_it_is_left(
    service: Service, client: redis.Redis
) -> None:
    url = service.broker_url
    done = run_python(
        *("-c", PROGRAM), timeout=100, CELERY_BROKER_URL=url, CELERY_RESULT_BACKEND=url
    )
    assert done.returncode == 0, done.stderr
    assert "as it should be" in done.stdout
    # Only the direct call, and the calls under way when the caller stopped, have left results.
    eventually(lambda: client.llen("embedq") == client.hlen("unacked") == 0, 30)
    assert len(list(client.scan_iter("celery-task-meta-*"))) <= 1 + 3
