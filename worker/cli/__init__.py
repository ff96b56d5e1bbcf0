"""The `embedq` command: its options here, what it does elsewhere.

Exit codes: 0 done, or ended as asked; 1 it could not be done, with the reason in one line on
standard error; 2 a wrong option or setting.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from worker.contract.errors import EmbedqError, SettingsError

#: Commands by name, each in a module of its own that is imported when it is asked for.
COMMANDS = {
    "up": "Run a whole embedq on this machine: Valkey, workers and the API.",
    "embed": "Embed files of texts, through a service or on this machine.",
    "jobs": "List, show, await and cancel the jobs of a service.",
    "health": "Tell whether a worker on this machine makes progress.",
    "keys": "Add, list and revoke API keys.",
    "dead-letters": "Look at messages that no worker could run; run or drop them.",
    "tune": "Find the fastest way to run a model on this machine.",
    "verify": "Compare vectors with sentence-transformers' on this machine.",
}


class Commands(click.Group):
    """Imports a command when it runs, and turns our errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"worker.cli.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            raise click.UsageError(error.message) from error
        except EmbedqError as error:
            raise click.ClickException(error.message) from error


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="embedq")
def main() -> None:
    """Text embeddings as Celery jobs: many small jobs in, full batches on one device, vectors out.

    Settings are environment variables (EMBEDQ_MODEL, EMBEDQ_DEVICE, CELERY_BROKER_URL, …); an
    option of a command goes before its variable. `celery -A worker worker` and
    `gunicorn 'api:create_app()'` run the parts alone.
    """
