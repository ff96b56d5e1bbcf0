"""List, show, await and cancel the jobs of a service."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import click
import orjson

from worker.contract.jobs import Status
from worker.offline.client import Remote

DEFAULT_URL = "http://127.0.0.1:8000"


def _url_option(function: Callable[..., None]) -> Callable[..., None]:
    option = click.option(
        "--url",
        envvar="EMBEDQ_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        help="Address of the service; its key in EMBEDQ_API_KEY.",
    )

    @wraps(function)
    def with_service(url: str, **options: Any) -> None:
        with _service(url) as service:
            function(service, **options)

    return option(with_service)


@click.group("jobs")
def command() -> None:
    """List, show, await and cancel the jobs of a running service."""


@command.command("list")
@_url_option
@click.option("--status", type=click.Choice([status.value for status in Status]))
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
def list_jobs(service: Remote, status: str | None, limit: int) -> None:
    """One line a job, newest first: id, status, time, texts done and all."""
    found = False
    for job in service.jobs(status=status, limit=limit):
        found = True
        done, total = job["progress"]["done"], job["progress"]["total"]
        created = (job["created_at"] or "")[:19].replace("T", " ")
        click.echo(f"{job['id']}  {job['status']:<9}  {created:<19}  {done}/{total or '?'}")
    if not found:
        click.echo("there are no jobs", err=True)


@command.command()
@_url_option
@click.argument("job")
def show(service: Remote, job: str) -> None:
    """Print JOB as JSON."""
    _echo(service.job(job))


@command.command()
@_url_option
@click.argument("job")
def wait(service: Remote, job: str) -> None:
    """Print JOB as JSON when it has ended; the exit code is 1 unless it succeeded."""
    try:
        ended = service.wait(job)
    except KeyboardInterrupt:
        sys.exit(130)
    _echo(ended)
    sys.exit(0 if ended["status"] == Status.SUCCEEDED else 1)


@command.command()
@_url_option
@click.argument("jobs", nargs=-1, required=True)
def cancel(service: Remote, jobs: tuple[str, ...]) -> None:
    """Cancel JOBS; those that have ended stay as they are."""
    for job in jobs:
        click.echo(f"{job}  {service.cancel(job)['status']}")


@contextmanager
def _service(url: str) -> Iterator[Remote]:
    service = Remote(url, api_key=os.environ.get("EMBEDQ_API_KEY"))
    try:
        yield service
    finally:
        service.close()


def _echo(job: dict[str, Any]) -> None:
    click.echo(orjson.dumps(job, option=orjson.OPT_INDENT_2).decode())
