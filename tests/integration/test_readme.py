"""What the README says is what happens: its examples run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Service
from tests.processes import clean_environment
from tests.readme import ADDRESS, EXAMPLES, blocks, rest_examples, section


@pytest.mark.parametrize("number", range(len(rest_examples())))
def test_the_rest_examples_work_as_pasted(service: Service, tmp_path: Path, number: int) -> None:
    script = rest_examples()[number].replace(ADDRESS, service.url)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"status":"succeeded"' in done.stdout


def test_the_file_examples_work_as_pasted(service: Service, tmp_path: Path) -> None:
    (script,) = blocks("sh", section(EXAMPLES, "Files"))
    bin_folder = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace(ADDRESS, service.url)],
        cwd=tmp_path,
        env=clean_environment(PATH=f"{bin_folder}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "texts.npy").shape == (2, 384)
    assert len((tmp_path / "texts.jsonl").read_text().splitlines()) == 2


def test_no_example_meets_a_file_that_one_before_it_wrote() -> None:
    written = re.findall(r" -o (\S+)", "".join(blocks("sh")))
    assert written
    assert len(written) == len(set(written))


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_python_examples_work_as_pasted(service: Service, tmp_path: Path, number: int) -> None:
    example = tmp_path / "example.py"
    example.write_text(blocks("python")[number].replace(ADDRESS, service.url))
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env=clean_environment(
            CELERY_BROKER_URL=service.broker_url, CELERY_RESULT_BACKEND=service.broker_url
        ),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "384" in done.stdout
