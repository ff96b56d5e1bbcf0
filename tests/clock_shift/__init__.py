"""Hosts with wrong clocks."""

from __future__ import annotations

import os
from pathlib import Path

from tests.processes import ROOT


def shifted(seconds: int) -> dict[str, str]:
    """The environment of a process on a host with a clock so many seconds ahead."""
    # Python imports `sitecustomize` automatically.
    path = (str(Path(__file__).parent), str(ROOT))
    return {"PYTHONPATH": os.pathsep.join(path), "CLOCK_SHIFT_SECONDS": str(seconds)}
