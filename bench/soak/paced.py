"""The costless worker with a monitor of the pauses of its event loop.

`celery -A bench.soak.paced worker` appends each pause of a twentieth of a second or more to the
list `bench:pauses`, as JSON: `[pid, seconds since the epoch, pause in seconds]`.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

import redis
from celery.signals import worker_ready

from bench import costless
from worker.pool.loop import LoopCalls

app = costless.app

PAUSES = "bench:pauses"
#: Seconds: the shortest reported pause, and the interval between two checks.
SHORTEST, _INTERVAL = 0.05, 0.02
#: Seconds without an answer after which the loop counts as ended, as when the worker stops.
_LONGEST = 60.0


@worker_ready.connect
def _watch(sender: Any, **_: object) -> None:
    # Again after each reconnect: the loop drops its readers with the connection.
    calls = LoopCalls()
    calls.attach(sender.hub)
    threading.Thread(target=_run, args=(calls,), name="bench-pauses", daemon=True).start()


def _run(calls: LoopCalls) -> None:
    client = redis.Redis.from_url(os.environ["CELERY_BROKER_URL"])
    answered, timer = threading.Event(), threading.Event()
    while True:
        asked = time.monotonic()
        answered.clear()
        calls.call(answered.set)
        if not answered.wait(_LONGEST):
            return
        pause = time.monotonic() - asked
        if pause >= SHORTEST:
            client.rpush(PAUSES, json.dumps([os.getpid(), time.time(), pause]))
        timer.wait(_INTERVAL)
