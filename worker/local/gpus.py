"""GPUs of this machine, counted without importing torch into this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: Device files that only a machine with a second NVIDIA GPU, or with AMD GPUs, has.
_SIGNS = (Path("/dev/nvidia1"), Path("/dev/kfd"))
#: Prints the devices that torch can use.
_QUESTION = "from worker.encoder.devices import existing_devices; print(*existing_devices())"
#: Seconds that importing torch and starting the driver may take.
_LONGEST_S = 120


def count(device: str) -> int:
    """GPUs that workers on `device` can be spread over; 0 if `device` is one device, or a CPU."""
    if device not in ("auto", "cuda") or not any(sign.exists() for sign in _SIGNS):
        return 0
    command = [sys.executable, "-c", _QUESTION]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_LONGEST_S
        )
    except subprocess.TimeoutExpired:
        # A driver that hangs: the worker reports it.
        return 0
    return sum(name.startswith("cuda:") for name in run.stdout.split())
