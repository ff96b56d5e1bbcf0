"""Compare vectors with sentence-transformers' on this machine."""

from __future__ import annotations

import sys

import click

from worker.cli._settings import DEVICE, MODEL, settings_with
from worker.contract.backends import backends, number_formats

_BACKENDS, _DTYPES = ", ".join(backends()), ", ".join(number_formats())


@click.command("verify")
@MODEL
@DEVICE
@click.option("--backend", help=f"auto, {_BACKENDS}.  [default: EMBEDQ_BACKEND or auto]")
@click.option("--dtype", help=f"auto, {_DTYPES}.  [default: EMBEDQ_DTYPE or auto]")
def command(**options: str | None) -> None:
    """Compare vectors with sentence-transformers' on this machine.

    Texts of many kinds go through the model alone and in batches of several shapes; the table
    shows the largest difference to what SentenceTransformer.encode gives for each text alone.
    The exit code is 1 where one is past its limit.
    """
    settings = settings_with(**options)
    # Only here: torch takes seconds to import.
    from worker.verify import table, verify

    passed = True
    for spec in settings.models:
        click.echo(f"Comparing {spec.name} with sentence-transformers …", err=True)
        info, rows = verify(
            spec,
            device=settings.device,
            backend=settings.backend,
            dtype=settings.dtype,
            min_cosine=settings.min_cosine,
            cache=settings.cache_dir,
        )
        click.echo(table(info, rows))
        passed = passed and all(row.passed for row in rows)
    sys.exit(0 if passed else 1)
