"""Run a whole embedq on this machine: Valkey, workers and the API."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from worker.cli._settings import DEVICE, MODEL
from worker.contract.settings import default_folder
from worker.local.deployment import Options
from worker.local.up import up


@click.command("up")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the API.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port of the API; 0 takes a free one.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_folder,
    show_default="$XDG_DATA_HOME/embedq or ~/.local/share/embedq",
    help="Where the embedded Valkey keeps its data; one embedq each.",
)
@MODEL
@DEVICE
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Worker processes, each with the model; GPUs in turn.  [default: one per GPU, or 1]",
)
@click.option(
    "--without-keys",
    is_flag=True,
    help="Let --host be open to others although no keys are checked.",
)
@click.option("--demo", is_flag=True, help="Submit a sample job and show its result.")
@click.option("--with-parent", is_flag=True, hidden=True, help="End with the parent process.")
def command(
    host: str,
    port: int,
    data_dir: Path,
    model: str | None,
    device: str | None,
    workers: int | None,
    without_keys: bool,
    demo: bool,
    with_parent: bool,
) -> None:
    """Run a whole embedq on this machine: Valkey, workers and the API.

    Where CELERY_BROKER_URL is set, that server is used and no Valkey is started. A process that
    ends by accident is started again. Ctrl-C or SIGTERM ends it all: open requests, what is
    being encoded, then Valkey; jobs that wait stay in the data directory. Ctrl-C again ends it
    at once.
    """
    options = Options(host, port, data_dir, model, device, workers or 0, without_keys)
    up(options, with_demo=demo, with_parent=with_parent, say=_say, show=_show)


def _say(line: str) -> None:
    """Print progress on standard error. A closed terminal must not prevent the shutdown."""
    with suppress(OSError):
        click.echo(line, err=True)


def _show(line: str) -> None:
    """Print requested output on standard output, which may be closed."""
    with suppress(OSError):
        click.echo(line)
