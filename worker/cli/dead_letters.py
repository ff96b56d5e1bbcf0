"""Look at messages that no worker could run; run or drop them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import click
import orjson
import redis

from worker.contract.settings import Settings
from worker.store.dead_letters import DeadLetter, DeadLetters
from worker.store.server import connect, reason


@click.group("dead-letters")
def command() -> None:
    """Look at messages that no worker could run; run or drop them.

    A message gets here when it cannot be read, when no worker knows its task, or when its job has
    killed its worker too often (`poisoned`). The jobs themselves have failed with that reason.
    """


@command.command("list")
def list_letters() -> None:
    """One line a letter, newest first: job, time, task and reason; no texts."""
    with _letters() as letters:
        found = False
        for letter in letters:
            found = True
            buried = datetime.fromtimestamp(letter.buried_at, UTC)
            click.echo(f"{letter.id}  {buried:%Y-%m-%d %H:%M:%S}Z  {letter.task}  {letter.reason}")
        if not found:
            click.echo("there are no dead letters", err=True)


@command.command()
@click.argument("job")
def show(job: str) -> None:
    """Print the message of JOB as JSON, its texts included."""
    with _letters() as letters:
        message = _find(letters, job).message
    try:
        text = orjson.dumps(orjson.loads(message), option=orjson.OPT_INDENT_2).decode()
    except ValueError:
        text = message
    click.echo(text.encode("utf-8", "surrogateescape"))


@command.command()
@click.argument("jobs", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every letter.")
def requeue(jobs: tuple[str, ...], everything: bool) -> None:
    """Queue JOBS again, as if they had never run."""
    with _letters() as letters:
        _apply(letters, jobs, everything, letters.requeue, "queued again")


@command.command()
@click.argument("jobs", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every letter.")
def drop(jobs: tuple[str, ...], everything: bool) -> None:
    """Remove the letters of JOBS for good."""
    with _letters() as letters:
        _apply(letters, jobs, everything, letters.drop, "dropped")


@contextmanager
def _letters() -> Iterator[DeadLetters]:
    settings = Settings.from_env()
    try:
        with connect(settings.broker_url, sentinel_master=settings.sentinel_master) as client:
            yield DeadLetters(client, settings.queue)
    except redis.RedisError as error:
        raise click.ClickException(f"Redis does not answer: {reason(error)}") from error


def _apply(
    letters: DeadLetters,
    jobs: tuple[str, ...],
    everything: bool,
    action: Callable[[DeadLetter], bool],
    done: str,
) -> None:
    if bool(jobs) == everything:
        raise click.UsageError("name the jobs, or give --all")
    chosen = list(letters) if everything else [_find(letters, job) for job in jobs]
    count = sum(action(letter) for letter in chosen)
    click.echo(f"{count} {done}")


def _find(letters: DeadLetters, job: str) -> DeadLetter:
    letter = letters.find(job)
    if letter is None:
        raise click.ClickException(f"there is no dead letter of job {job!r}")
    return letter
