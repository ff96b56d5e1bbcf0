"""`python -m bench.soak.bulk`: kill all processes during a batch, and count its lines.

Exits with 1 if a line of the input is missing from the output, is in it twice, or has a wrong
vector.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openai
import redis
from openai.types import Batch

from bench.costless import expected
from bench.soak.audit import leftovers
from bench.soak.stage import Stage
from tests.processes import eventually
from worker.contract.settings import DEFAULT_MODEL_NAME

_ENDED = ("completed", "failed", "expired", "cancelled")
#: The cycle of the kills.
_EVENTS = ("worker", "worker", "api", "valkey", "connections")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak.bulk", description=__doc__)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pause", type=float, default=2.0, help="mean seconds between two kills")
    parser.add_argument("--forward-ms", type=float, default=60.0, help="time of one forward pass")
    parser.add_argument("--seed", type=int, default=0, help="repeat a run's order of events")
    options = parser.parse_args(arguments)
    stage = Stage(
        workers=2, transport="embedq", app="bench.costless", forward_ms=options.forward_ms
    )
    try:
        report = _soak(stage, options)
    finally:
        stage.close()
    print(json.dumps(report, indent=2))
    return 0 if report["right"] == options.lines and not report["wrong"] else 1


def _soak(stage: Stage, options: argparse.Namespace) -> dict[str, Any]:
    texts = {f"r{number}": f"text {number} of the batch" for number in range(options.lines)}
    began = time.monotonic()
    batch_id = _create(stage, texts)
    kills = _kill(stage, batch_id, options)
    batch = _ended(stage, batch_id)
    seconds = time.monotonic() - began
    counts = _audit(stage, batch, texts)
    with stage.client() as client:
        eventually(lambda: not client.hlen("unacked"), 30)
        left = leftovers(client, "embedq")
    return {
        "seconds": round(seconds),
        "status": batch.status,
        "lines": options.lines,
        "killed while it ran": dict(kills),
        "right": counts["right"],
        "wrong": counts.total() - counts["right"],
        "left": left,
    }


def _create(stage: Stage, texts: dict[str, str]) -> str:
    lines = [
        {
            "custom_id": custom_id,
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": DEFAULT_MODEL_NAME, "input": text},
        }
        for custom_id, text in texts.items()
    ]
    with _client(stage) as client:
        data = "\n".join(map(json.dumps, lines)).encode()
        file = client.files.create(file=data, purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
        )
    return batch.id


def _kill(stage: Stage, batch_id: str, options: argparse.Namespace) -> Counter[str]:
    """Kill processes and connections at random times until the batch ends; count the kills."""
    rng = random.Random(options.seed)
    timer = threading.Event()
    acts: dict[str, Callable[[], object]] = {
        "worker": lambda: stage.kill_worker(rng.randrange(len(stage.workers))),
        "api": stage.kill_api,
        "valkey": stage.restart_valkey,
        "connections": stage.kill_connections,
    }
    kills: Counter[str] = Counter()
    for number in range(options.kills):
        timer.wait(rng.uniform(0.3, 1.7) * options.pause)
        event = _EVENTS[number % len(_EVENTS)]
        if _status(stage, batch_id) in _ENDED:
            break
        acts[event]()
        kills[event] += 1
        print(f"\r{number + 1}/{options.kills} {event:<12}", end="", flush=True)
    print(flush=True)
    return kills


def _status(stage: Stage, batch_id: str) -> str:
    """Return the batch's status from Redis, which restarts faster than the API."""
    with stage.client() as client:
        try:
            return str(client.hget(f"embedq:batch:{batch_id}", "status").decode())
        except redis.RedisError:
            return ""


def _ended(stage: Stage, batch_id: str) -> Batch:
    eventually(lambda: _status(stage, batch_id) in _ENDED, 900, interval=0.5)
    with _client(stage) as client:
        return client.batches.retrieve(batch_id)


def _audit(stage: Stage, batch: Batch, texts: dict[str, str]) -> Counter[str]:
    """Count the lines of the output: `right`, `wrong`, `twice`; and the `missing` ones."""
    counts: Counter[str] = Counter()
    left = dict(texts)
    if batch.output_file_id is None:
        return Counter(missing=len(texts))
    with _client(stage) as client:
        for raw in client.files.content(batch.output_file_id).iter_lines():
            line = json.loads(raw)
            text = left.pop(line["custom_id"], None)
            if text is None:
                counts["twice"] += 1
                continue
            [found] = line["response"]["body"]["data"]
            right = np.allclose(found["embedding"], expected([text])[0], atol=1e-5)
            counts["right" if right else "wrong"] += 1
    counts["missing"] += len(left)
    return counts


def _client(stage: Stage) -> openai.OpenAI:
    assert stage.api is not None
    return openai.OpenAI(base_url=f"{stage.api.url}/v1", api_key="none", timeout=60, max_retries=5)


if __name__ == "__main__":
    sys.exit(main())
