"""Options of several commands that stand for settings."""

from __future__ import annotations

import os

import click

from worker.contract.settings import Settings

MODEL = click.option(
    "--model", help="A path or a Hub id.  [default: EMBEDQ_MODEL or the packaged model]"
)
DEVICE = click.option(
    "--device", help="auto, cpu, cuda, cuda:N or mps.  [default: EMBEDQ_DEVICE or auto]"
)


def settings_with(**options: str | None) -> Settings:
    """The settings of the environment; a given option `model` replaces `EMBEDQ_MODEL`.

    Raises SettingsError.
    """
    given = {
        f"EMBEDQ_{name.upper()}": value for name, value in options.items() if value is not None
    }
    return Settings.from_env(os.environ | given)
