"""A worker on the other backend: it starts, serves, and stops like every worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.integration.stand import ANSWER_S, embed_at, vectors
from tests.processes import Process
from worker.contract.models import ModelSpec
from worker.encoder.reference import Reference
from worker.tasks import embed


@pytest.mark.timeout(180)
def test_a_worker_serves_and_stops_on_openvino(
    worker_process: Callable[..., Process], redis_url: str, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    texts = ["the queue", "a somewhat longer text about queues", "the queue"]
    worker = worker_process(env={"EMBEDQ_BACKEND": "openvino", "EMBEDQ_CACHE_DIR": str(tmp_path)})
    with embed_at(redis_url):
        found = vectors(embed.delay(texts).get(timeout=ANSWER_S))
    expected = Reference(ModelSpec("default"), device="cpu").encode_alone(texts)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert "openvino float32 on cpu, path padded, batches of" in worker.log()
    assert worker.stop() == 0
    assert len(list((tmp_path / "openvino").glob("*/graph.xml"))) == 1
