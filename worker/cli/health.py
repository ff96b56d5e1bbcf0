"""Tell whether a worker on this machine makes progress."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress

import click
import redis

from worker.contract.settings import Settings
from worker.store.server import connect, reason
from worker.store.worker_registry import WorkerRegistry

#: Seconds without progress after which a worker counts as unhealthy: several heartbeat intervals,
#: and less than the limit of the API.
SILENCE_S = 20.0


@click.command("health")
def command() -> None:
    """Tell whether a worker on this machine makes progress.

    Reads what the workers wrote into Redis: one cheap question, answered by a device that works
    and not merely by a process that lives. The exit code is 1 where none does.
    """
    settings = Settings.from_env()
    try:
        with connect(settings.result_backend, sentinel_master=settings.sentinel_master) as client:
            heartbeats, now = WorkerRegistry(client, settings.queue).heartbeats()
    except redis.RedisError as error:
        raise click.ClickException(f"Redis does not answer: {reason(error)}") from error
    silence = shortest_silence(heartbeats, socket.gethostname(), now)
    if silence is None:
        click.echo("no worker on this machine", err=True)
    else:
        click.echo(f"last progress {silence:.0f} s ago")
    sys.exit(0 if silence is not None and silence <= SILENCE_S else 1)


def shortest_silence(heartbeats: Mapping[bytes, bytes], hostname: str, now: float) -> float | None:
    """Seconds since a worker of `hostname` last made progress; None without a worker. Pure."""
    times = []
    for raw in heartbeats.values():
        with suppress(ValueError, TypeError, KeyError):
            heartbeat = json.loads(raw)
            if heartbeat["hostname"] == hostname:
                times.append(float(heartbeat["at"]))
    return now - max(times) if times else None
