"""Add, list and revoke API keys."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from worker.store.api_keys import LATEST, ApiKey, KeyFile, new_key

_SPAN = re.compile(r"(\d+)([hdw])")
_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


class ExpiryParam(click.ParamType[float]):
    """A span such as `90d` or a date, as seconds since the epoch."""

    name = "when"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = _SPAN.fullmatch(str(value))
        if match:
            expiry = time.time() + int(match[1]) * _SECONDS[match[2]]
            if expiry > LATEST:
                self.fail(f"{value!r} is beyond the year 9999", param, ctx)
            return expiry
        try:
            when = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is neither a span such as 12h, 90d or 4w nor a date", param, ctx)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        if when.timestamp() <= time.time():
            self.fail(f"{value!r} has passed already", param, ctx)
        return when.timestamp()


@click.group("keys")
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="EMBEDQ_API_KEYS_FILE",
    required=True,
    show_envvar=True,
    help="The file of keys, which the API reads.",
)
@click.pass_context
def command(ctx: click.Context, path: Path) -> None:
    """Add, list and revoke API keys.

    The file holds hashes: a key is shown once, when it is made. A running API takes a change up
    within seconds.
    """
    ctx.obj = KeyFile(path)


@command.command()
@click.option("--name", default="", help="Whose it is.")
@click.option("--expires", "expires_at", type=ExpiryParam(), help="12h, 90d, 4w or a date (UTC).")
@click.option("--requests-per-minute", type=click.IntRange(1), help="Submissions.")
@click.option("--tokens-per-minute", type=click.IntRange(1), help="Tokens of texts submitted.")
@click.option("--max-queued-tokens", type=click.IntRange(1), help="Tokens waiting at a time.")
@click.option("--max-queued-mb", type=click.IntRange(1), help="MiB of messages waiting at a time.")
@click.pass_obj
def add(file: KeyFile, /, **fields: Any) -> None:
    """Make a key and print it. It cannot be shown again."""
    made = new_key(**fields)
    file.add(made.key)
    click.echo(made.secret)
    click.echo(f"Key {made.key.id} is in {file.path}; this is the only time it is shown.", err=True)


@command.command("list")
@click.pass_obj
def list_keys(file: KeyFile) -> None:
    """One line a key: id, state, name, when it expires, and its limits."""
    found = False
    for key in file.read():
        found = True
        click.echo(_line(key))
    if not found:
        click.echo("there are no keys", err=True)


@command.command()
@click.argument("key")
@click.pass_obj
def revoke(file: KeyFile, key: str) -> None:
    """Revoke KEY, an id or a name. Its jobs go on; nobody can read them any more."""
    click.echo(f"{file.revoke(key).id} revoked")


def _line(key: ApiKey) -> str:
    until = "-"
    if key.expires_at is not None:
        until = f"{datetime.fromtimestamp(key.expires_at, UTC):%Y-%m-%d %H:%M}Z"
    limits = {
        "requests/min": key.requests_per_minute,
        "tokens/min": key.tokens_per_minute,
        "queued tokens": key.max_queued_tokens,
        "queued MiB": key.max_queued_mb,
    }
    rights = [f"{value:,} {name}" for name, value in limits.items() if value is not None]
    state = key.state(time.time())
    return f"{key.id}  {state:<7}  {key.name or '-':<20}  {until:<17}  {', '.join(rights) or '-'}"
