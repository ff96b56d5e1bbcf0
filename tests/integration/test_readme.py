"""The README is right: its examples run unchanged."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Service
from tests.processes import run, run_python
from tests.readme import ADDRESS, EXAMPLES, blocks, rest_examples, section

BASH = ("bash", "-euo", "pipefail", "-c")


@pytest.mark.parametrize("number", range(len(rest_examples())))
def test_the_rest_examples_work_as_pasted(service: Service, tmp_path: Path, number: int) -> None:
    script = rest_examples()[number].replace(ADDRESS, service.url)
    done = run([*BASH, script], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"status":"succeeded"' in done.stdout


def test_the_file_examples_work_as_pasted(service: Service, tmp_path: Path) -> None:
    (script,) = blocks("sh", section(EXAMPLES, "Files"))
    bin_folder = Path(sys.executable).parent
    path = f"{bin_folder}:{os.environ['PATH']}"
    done = run([*BASH, script.replace(ADDRESS, service.url)], cwd=tmp_path, timeout=110, PATH=path)
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
    urls = dict.fromkeys(("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"), service.broker_url)
    done = run_python(str(example), cwd=tmp_path, timeout=110, **urls)
    assert done.returncode == 0, done.stderr
    assert "384" in done.stdout
