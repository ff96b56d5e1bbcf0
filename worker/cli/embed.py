"""Embed files of texts, through a service or on this machine."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, get_args

import click
from tqdm import tqdm

from worker.contract.jobs import Long, parse_options
from worker.contract.settings import Settings
from worker.offline import Report, run, stream
from worker.offline.client import Remote
from worker.offline.rows import FORMATS, STDIN, RowSource
from worker.offline.run import folder_of
from worker.offline.writing import check_output

#: Exit codes in addition to those of every command.
SOME_FAILED, INTERRUPTED = 3, 130
_STDOUT = Path("-")


@click.command("embed")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    default=_STDOUT,
    help="A file that ends in .npy, .jsonl or .parquet.  [default: JSON Lines on standard output]",
)
@click.option("--column", help="Column of the texts.  [default: the only one, or 'text']")
@click.option("--keep", multiple=True, metavar="COLUMN", help="Copy this column; repeatable.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="Where the ending says nothing.")
@click.option("--url", help="Embed through this service, not on this machine.")
@click.option("--model", help="A path or a Hub id; with --url a served name.")
@click.option("--device", help="auto, cpu, cuda, cuda:N or mps; without --url.")
@click.option("--prompt-name", help="One of the model's own prompts, such as query.")
@click.option("--prompt", help="A prompt to put before every text.")
@click.option("--dimensions", type=click.IntRange(1), help="Fewer than the model's, if it allows.")
@click.option("--normalize/--no-normalize", default=True, help="Scale to unit length, or do not.")
@click.option("--truncate/--no-truncate", default=True, help="Cut long texts, or let them fail.")
@click.option(
    "--long", type=click.Choice(get_args(Long)), help="Cut long texts, or average over windows."
)
@click.option("--overwrite", is_flag=True, help="Replace an output that is there.")
@click.option("--restart", is_flag=True, help="Forget what an interrupted run has done.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar and no summary.")
def command(
    files: tuple[Path, ...],
    output: Path,
    column: str | None,
    keep: tuple[str, ...],
    form: str | None,
    url: str | None,
    model: str | None,
    device: str | None,
    overwrite: bool,
    restart: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Embed the texts of FILES (txt, jsonl, csv, parquet), one row a text, in their order.

    Without FILES, or with -, texts are read from standard input, one a line. With --url they go
    through a running service (its key in EMBEDQ_API_KEY), else the engine runs in this process.

    An interrupted run with an output file keeps what it has done in OUTPUT.part; the same command
    goes on from there. A row without a usable text fails alone: null in .jsonl and .parquet, a row
    of zeros in .npy.

    Exit codes: 0 every row has a vector, 3 some have none, 130 interrupted, 1 it could not be
    done, 2 a wrong option.
    """
    if url and device:
        raise click.UsageError("--device is for this machine; the service has its own")
    source = RowSource(files or (STDIN,), column, form, keep)
    if output != _STDOUT:
        if output.exists() and not overwrite:
            raise click.UsageError(f"{output} is there already; --overwrite replaces it")
        if restart:
            shutil.rmtree(folder_of(output), ignore_errors=True)
        check_output(output, source)
    elif keep:
        raise click.UsageError("--keep needs an output file")
    chosen = {name: value for name, value in options.items() if value is not None}
    # Reads every file once, to report an unusable file at once.
    total = source.count()
    try:
        with (
            closing(_runner(url, model, device, chosen, quiet)) as runner,
            _progress(total, quiet) as progress,
        ):
            if output == _STDOUT:
                report = stream(source, sys.stdout.buffer, runner, progress=progress)
            else:
                said = [url, model, os.environ.get("EMBEDQ_MODEL"), chosen]
                report = run(source, output, runner, options=said, progress=progress)
    except KeyboardInterrupt:
        kept = output != _STDOUT and folder_of(output).exists()
        click.echo(
            f"Interrupted; what is done is in {folder_of(output)}, the same command goes on."
            if kept
            else "Interrupted.",
            err=True,
        )
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader has closed the pipe; the flush at exit must not write to it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if not quiet:
        click.echo(_summary(report), err=True)
    sys.exit(SOME_FAILED if report.failed else 0)


def _runner(
    url: str | None, model: str | None, device: str | None, chosen: dict[str, Any], quiet: bool
) -> Any:
    # Only here: torch takes seconds to import.
    from worker.offline.runners import LocalRunner, RemoteRunner
    from worker.service import EmbeddingService

    if url:
        options = parse_options(chosen | ({"model": model} if model else {}))
        return RemoteRunner(Remote(url, api_key=os.environ.get("EMBEDQ_API_KEY")), options)
    Settings.from_env()
    runner = LocalRunner(EmbeddingService(model, device or "auto"), parse_options(chosen))
    if not quiet:
        click.echo("Loading the model …", err=True)
    runner.load()
    return runner


@contextmanager
def _progress(total: int | None, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left, if standard error is a terminal."""
    bar: tqdm[Any] | None = None

    def show(done: int) -> None:
        nonlocal bar
        if bar is None:
            # Rows of earlier runs are not part of this run's rate.
            earlier = done if done != total else 0
            bar = tqdm(
                total=total, initial=earlier, unit=" texts", disable=quiet or None, smoothing=0.05
            )
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


def _summary(report: Report) -> str:
    parts = [f"{_rows(report.rows)}, {report.tokens:,} tokens"]
    if report.truncated:
        parts.append(f"{_rows(report.truncated)} cut at the model's limit")
    if report.failed:
        has = "has" if report.failed == 1 else "have"
        parts.append(f"{_rows(report.failed)} {has} no vector")
    return "; ".join(parts)


def _rows(count: int) -> str:
    return f"{count:,} row" + ("" if count == 1 else "s")
