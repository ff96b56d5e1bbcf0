"""Find the fastest way to run a model on this machine."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from worker import tuned
from worker.cli._settings import DEVICE, MODEL, settings_with
from worker.contract.backends import number_formats

_ALLOWED = tuple(dtype for dtype in number_formats() if dtype != "float32")


@click.command("tune")
@MODEL
@DEVICE
@click.option(
    "--allow",
    default="",
    help=f"Number formats to try beside float32, of {', '.join(_ALLOWED)}, with commas.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=120,
    show_default=True,
    help="How long to measure, loading apart.",
)
def command(model: str | None, device: str | None, allow: str, seconds: float) -> None:
    """Find backend, number format, threads and token budget for a model on this machine.

    Prints speed and accuracy of each way, and writes the fastest to the file EMBEDQ_TUNED.
    `embedq up` and workers take from it what their settings leave open. Keep the machine idle
    meanwhile.
    """
    settings = settings_with(model=model, device=device)
    dtypes = [dtype.strip() for dtype in allow.split(",") if dtype.strip()]
    for dtype in dtypes:
        if dtype not in _ALLOWED:
            raise click.BadParameter(f"{dtype!r} is not one of {', '.join(_ALLOWED)}")
    # Only here: torch takes seconds to import.
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from worker.tune import best, table, tune

    path = tuned.path_of(settings)
    for spec in settings.models:
        shape = "{desc}: {percentage:3.0f}%|{bar}|"
        bar = tqdm(total=1.0, desc=f"Tuning {spec.name}", bar_format=shape, disable=None)
        with bar, logging_redirect_tqdm():
            findings = tune(
                spec,
                device=settings.device,
                allow=dtypes,
                seconds=seconds,
                min_cosine=settings.min_cosine,
                cache=settings.cache_dir,
                progress=partial(_advance, bar),
            )
        click.echo(f"{spec.name} on {tuned.machine()}\n\n{table(findings)}\n")
        try:
            tuned.remember(path, spec, settings.device, best(findings))
        except OSError as error:
            raise click.ClickException(f"{path} cannot be written: {error}") from error
    click.echo(f"The fastest is in {path}; workers take it when they start.")


def _advance(bar: Any, way: str, share: float) -> None:
    bar.n = share
    # Shows the bar, too.
    bar.set_description(f"Trying {way}")
