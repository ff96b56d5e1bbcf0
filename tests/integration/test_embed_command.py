"""`embedq embed` and `embedq jobs` as processes: alone, through a service, interrupted."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
import requests

from tests.conftest import Service
from tests.processes import ROOT, clean_environment, eventually
from worker.offline.run import folder_of

MAIN = (sys.executable, "-c", "from worker.cli import main; main()")
TEXTS = [f"sentence {index} is about {'cats' if index % 2 else 'the sea'}" for index in range(600)]


def embedq(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*MAIN, *map(str, arguments)],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        timeout=110,
        check=False,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    from worker.service import EmbeddingService

    with EmbeddingService() as service:
        return service.encode(TEXTS)


def test_standard_input_becomes_json_lines_and_bad_rows_an_exit_code() -> None:
    done = embedq("embed", input=b"a cat\n\xff\nthe sea\n")
    assert done.returncode == 3, done.stderr
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert len(first["embedding"]) == len(third["embedding"]) == 384
    assert second["embedding"] is None
    assert second["error"]["code"] == "invalid_text"
    assert b"1 row has no vector" in done.stderr


def test_a_run_stopped_by_ctrl_c_goes_on_with_the_same_command(
    tmp_path: Path, expected: np.ndarray
) -> None:
    path, output = tmp_path / "long.txt", tmp_path / "out.npy"
    # Much more than a stopped run has under way and may still finish.
    path.write_text("\n".join(TEXTS * 20) + "\n")
    # On a terminal, so that Ctrl-C works and the bar is shown.
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [*MAIN, "embed", str(path), "-o", str(output)]
    with subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stderr=theirs) as process:
        os.close(theirs)
        state = folder_of(output) / "state.json"
        eventually(lambda: state.exists() or process.poll() is not None, 60)
        process.send_signal(signal.SIGINT)
        said = b""
        while True:
            try:
                said += os.read(ours, 65536)
            except OSError:
                break
        assert process.wait(60) == 130, said
    os.close(ours)
    assert b"texts/s" in said
    assert b"the same command goes on" in said
    assert b"Traceback" not in said
    done_before = json.loads(state.read_bytes())["done"]["rows"]
    assert 0 < done_before < len(TEXTS) * 20
    assert embedq("embed", path, "-o", output).returncode == 0
    np.testing.assert_allclose(np.load(output), np.tile(expected, (20, 1)), atol=1e-5)
    assert not folder_of(output).exists()


def test_a_service_gives_the_same_vectors(
    service: Service, corpus: Path, tmp_path: Path, expected: np.ndarray
) -> None:
    output = tmp_path / "out.npy"
    done = embedq("embed", corpus, "-o", output, "--url", service.api.url)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(output), expected, atol=1e-5)
    again = embedq("embed", corpus, "-o", output, "--url", service.api.url)
    assert again.returncode == 2
    assert b"--overwrite" in again.stderr


def test_long_texts_are_read_to_their_end_here_and_through_a_service(
    service: Service, tmp_path: Path
) -> None:
    long, here, there = tmp_path / "long.txt", tmp_path / "here.npy", tmp_path / "there.npy"
    long.write_text(" ".join(f"sentence {number} of a long text" for number in range(90)))
    done = embedq("embed", long, "-o", here, "--long", "mean")
    assert done.returncode == 0, done.stderr
    assert b"cut at" not in done.stderr
    done = embedq("embed", long, "-o", there, "--long", "mean", "--url", service.api.url)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(here), np.load(there), atol=1e-5)


def test_an_option_the_service_refuses_is_told_in_one_line(service: Service, corpus: Path) -> None:
    done = embedq("embed", corpus, "--url", service.api.url, "--model", "nobody")
    assert done.returncode == 1
    assert b"nobody" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nothing.txt"], 1, "nothing.txt is not a file"),
        (["{corpus}", "-o", "out.txt"], 1, "does not end in .npy, .jsonl, .parquet"),
        (["{corpus}", "--keep", "id"], 1, "no column to keep"),
        (["{corpus}", "--url", "ftp://x"], 1, "is not an address"),
        (["{corpus}", "--url", "http://x", "--device", "cpu"], 2, "--device"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    corpus: Path, arguments: list[str], status: int, message: str
) -> None:
    done = embedq("embed", *(argument.format(corpus=corpus) for argument in arguments))
    assert done.returncode == status
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_jobs_are_listed_shown_awaited_and_cancelled(service: Service) -> None:
    url = ("--url", service.api.url)
    accepted = requests.post(f"{service.url}/jobs", json={"input": "one text"}, timeout=10)
    job = accepted.json()["id"]
    waited = embedq("jobs", "wait", job, *url)
    assert waited.returncode == 0, waited.stderr
    assert json.loads(waited.stdout)["status"] == "succeeded"
    assert json.loads(embedq("jobs", "show", job, *url).stdout)["id"] == job
    listed = embedq("jobs", "list", "--status", "succeeded", *url).stdout.decode()
    assert any(line.startswith(job) and line.endswith("1/1") for line in listed.splitlines())
    assert embedq("jobs", "cancel", job, *url).stdout.decode() == f"{job}  succeeded\n"
    missing = embedq("jobs", "show", "nobody", *url)
    assert missing.returncode == 1
    assert b"404" in missing.stderr
