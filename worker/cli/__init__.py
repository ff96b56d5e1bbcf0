"""The `embedq` command. Each module of this package is one subcommand, with its name.

A module has a click command named `command`; the first line of its docstring is shown by
`embedq --help`.

Exit codes: 0 done, or ended as asked; 1 it could not be done, with the reason in one line on
standard error; 2 a wrong option or setting.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from worker.contract.errors import EmbedqError, SettingsError


class Commands(click.Group):
    """Imports a command when it runs, and turns our errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_modules())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _modules():
            return None
        command: click.Command = import_module(f"{__name__}.{_modules()[cmd_name].stem}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(file)) for name, file in _modules().items()])

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


def _modules() -> dict[str, Path]:
    """Files of the commands by name, in alphabetical order."""
    files = (file for folder in __path__ for file in Path(folder).glob("[!_]*.py"))
    return {file.stem.replace("_", "-"): file for file in sorted(files)}


def _summary(file: Path) -> str:
    """The first line of a module's docstring. The module is not imported, which may take long."""
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
