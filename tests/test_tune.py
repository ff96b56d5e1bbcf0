"""`embedq tune`: the fastest correct settings, written to the file that workers read."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests import tiny_models
from tests.fakes import FakeEncoder, model_info
from worker import tune as tuning
from worker import tuned
from worker.cli.tune import command
from worker.contract.errors import ModelUnavailable
from worker.contract.models import ModelSpec
from worker.contract.settings import Settings
from worker.encoder import devices, load
from worker.encoder.english import english
from worker.loading import load_encoders
from worker.tune import Finding, best, smallest_worthwhile, table, tune
from worker.tuned import Tuned, applied, remember

SPEC = ModelSpec("tiny", "some/tiny")
FOUND = Tuned("torch", "float32", 3, 777)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(models=(SPEC,), tuned=tmp_path / "folder" / "tuned.json")


def kept(settings: Settings, found: Tuned = FOUND, device: str = "auto") -> None:
    remember(tuned.path_of(settings), SPEC, device, found)


def test_what_was_found_fills_what_the_settings_leave_open(settings: Settings) -> None:
    kept(settings)
    assert applied(settings, SPEC) == replace(
        settings, backend="torch", dtype="float32", threads=3, batch_tokens=777
    )
    own = replace(settings, backend="torch", threads=1)
    assert applied(own, SPEC).threads == 1
    assert applied(own, SPEC).batch_tokens == 777


@pytest.mark.parametrize("own", [{"backend": "openvino"}, {"dtype": "bfloat16"}])
def test_nothing_of_it_applies_where_the_environment_wants_another_way(
    own: dict[str, Any], settings: Settings
) -> None:
    kept(settings)
    own_settings = replace(settings, **own)
    assert applied(own_settings, SPEC) is own_settings


def test_it_is_for_this_model_on_this_device_of_this_machine(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(settings)
    assert applied(settings, ModelSpec("tiny", "other/tiny")) is settings
    elsewhere = replace(settings, device="cuda")
    assert applied(elsewhere, SPEC) is elsewhere
    monkeypatch.setattr(tuned, "machine", lambda: "another machine")
    assert applied(settings, SPEC) is settings


def test_models_and_devices_share_the_file(settings: Settings) -> None:
    kept(settings)
    kept(settings, Tuned("torch", "bfloat16", None, 65536), device="cuda")
    assert applied(settings, SPEC).batch_tokens == 777
    assert applied(replace(settings, device="cuda"), SPEC).batch_tokens == 65536


@pytest.mark.parametrize("content", ["", "no JSON", "[]", '{"a": {}}'])
def test_a_damaged_file_counts_as_empty(content: str, settings: Settings) -> None:
    path = tuned.path_of(settings)
    path.parent.mkdir()
    path.write_text(content)
    assert applied(settings, SPEC) is settings
    kept(settings)
    assert applied(settings, SPEC).batch_tokens == 777


def test_a_backend_that_is_gone_since_is_not_asked_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept(settings, Tuned("openvino", "int8", None, 4096))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with caplog.at_level(logging.WARNING):
        assert applied(settings, SPEC) is settings
    assert "tuned for openvino, which is not installed" in caplog.text


def test_every_budget_is_measured_with_batches_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = FakeEncoder(model_info(batch_tokens=30_000, max_tokens=512))
    monkeypatch.setattr(tuning, "load", lambda *_, **__: encoder)
    monkeypatch.setattr(tuning, "_Reference", _FakeReference)
    tune(SPEC, device="cuda", seconds=0.0)
    tokens = [sum(len(text.split()) for text in batch) for batch in encoder.batches]
    for budget in (15_000, 30_000, 60_000, 120_000):
        assert any(budget - 512 < size <= budget for size in tokens)


class _FakeReference:
    on_cpu = False

    def __init__(self, *_: object) -> None:
        self.english = english
        self.vectors = np.ones((tuning._COMPARED, 6), dtype=np.float32)


def test_what_was_found_on_a_gpu_is_for_its_kind_and_torch(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "describe", lambda _: "NVIDIA H200")
    kept(settings)
    assert applied(settings, SPEC).batch_tokens == 777
    monkeypatch.setattr(tuned.metadata, "version", lambda _: "2.99")
    assert applied(settings, SPEC) is settings
    monkeypatch.undo()
    assert applied(settings, SPEC) is settings, "a GPU's figures apply to a CPU"


def test_a_larger_budget_is_taken_only_where_it_pays() -> None:
    assert smallest_worthwhile({512: 100.0, 1024: 102.0, 2048: 102.5}) == 512
    assert smallest_worthwhile({512: 100.0, 1024: 110.0, 2048: 111.0}) == 1024
    assert smallest_worthwhile({512: 100.0, 1024: 102.0, 2048: 120.0}) == 2048


def test_the_fastest_way_that_ran_is_the_best() -> None:
    findings = [
        Finding("torch", "float32", None, 1536, 100.0, 1e-7, 1.0),
        Finding("openvino", "float32", None, objection="it does not convert"),
        Finding("openvino", "int8", 2, 4096, 300.0, 1e-2, 0.997),
    ]
    assert best(findings) == Tuned("openvino", "int8", 2, 4096)
    lines = table(findings).splitlines()
    assert "it does not convert" in lines[2]
    assert "0.99700" in lines[3]


def test_tuning_measures_writes_and_workers_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_TEXTS", 12)
    monkeypatch.setattr(tuning, "_COMPARED", 6)
    tried: list[tuple[str, str]] = []

    def watched(spec: ModelSpec, **options: Any) -> Any:
        tried.append((options["backend"], options["dtype"]))
        if options["backend"] == "openvino":
            raise ModelUnavailable("it does not convert")
        return load(spec, **options)

    monkeypatch.setattr(tuning, "load", watched)
    path = tmp_path / "tuned.json"
    monkeypatch.setenv("EMBEDQ_TUNED", str(path))
    monkeypatch.setenv("EMBEDQ_MODEL", f"tiny={tiny_models.bert(tmp_path)}")
    monkeypatch.setenv("EMBEDQ_DEVICE", "cpu")
    ended = CliRunner().invoke(command, ["--seconds", "1", "--allow", "bfloat16"])
    assert ended.exit_code == 0, ended.output
    assert {("torch", "float32"), ("torch", "bfloat16")} <= set(tried)
    assert "torch" in ended.output
    [entry] = json.loads(path.read_text()).values()
    assert entry["backend"] == "torch"
    [encoder] = load_encoders(Settings.from_env()).values()
    assert encoder.info.batch_tokens == entry["batch_tokens"]
    assert encoder.info.dtype == entry["dtype"]


def test_progress_names_every_way_and_ends_with_the_last_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_TEXTS", 12)
    monkeypatch.setattr(tuning, "_COMPARED", 6)
    monkeypatch.setattr(
        tuning, "_ways", lambda *_: [("torch", "float32", None), ("torch", "bfloat16", None)]
    )
    heard: list[tuple[str, float]] = []
    tuning.tune(
        ModelSpec("tiny", str(tiny_models.bert(tmp_path))),
        device="cpu",
        seconds=0.1,
        progress=lambda way, share: heard.append((way, share)),
    )
    ways, shares = zip(*heard, strict=True)
    assert (ways[0], ways[-1]) == ("torch float32", "torch bfloat16")
    assert list(shares) == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


def test_a_model_too_slow_for_a_whole_round_is_measured_by_the_part_that_it_ran() -> None:
    encoder = FakeEncoder()
    block = encoder.tokenize(["one two three four"] * 10)
    rate, longest = tuning._rate(encoder, block, budget=8, seconds=0.0)
    assert len(encoder.batches) == 1
    # Two of the texts, with the duration of their batch and little else.
    assert 0 < rate <= 2 / longest


def test_a_format_that_is_not_there_is_a_wrong_option() -> None:
    ended = CliRunner().invoke(command, ["--allow", "int4"])
    assert ended.exit_code == 2
    assert "'int4' is not one of bfloat16, float16, int8" in ended.output
