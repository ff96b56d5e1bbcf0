"""The registry of backends: one file adds a backend; settings, tune, documents and lint follow."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import worker.encoder
from tests.processes import ROOT
from worker import tune
from worker.cli.verify import command as verify_command
from worker.contract.backends import backends, choose_backend, number_formats
from worker.contract.errors import SettingsError
from worker.contract.models import ModelSpec
from worker.contract.settings import Settings
from worker.encoder import load
from worker.service import EmbeddingService

#: A whole backend: the length of a text and its number of words, in quarters.
TOY = """
import numpy as np

from worker.contract.backends import ComputeBackend
from worker.contract.models import ModelInfo
from worker.encoder.protocol import Cause
from worker.encoder.tokens import TokenBlock


class ToyEncoder:
    padding, slots, reserved = 0, 1, False

    def __init__(self, spec, options):
        self.info = ModelInfo(
            spec.name, 2, 512, "cpu", "toy", "quarters", True, options.batch_tokens or 64
        )

    def tokenize(self, texts, prompt=None):
        rows = [[len(word) for word in text.split()] for text in texts]
        offsets = np.cumsum([0, *map(len, rows)])
        ids = np.array([one for row in rows for one in row], np.int32)
        return TokenBlock(
            ids, offsets, np.zeros(len(rows), np.int32), np.zeros(len(rows), np.bool_)
        )

    def forward(self, batch, *, cores=1):
        sums = np.add.reduceat(batch.ids, batch.offsets[:-1])
        return np.stack([sums, batch.lengths], axis=1).astype(np.float32) / 4

    def enter(self, *, yielding): ...
    def cause(self, error): return Cause.TEXT
    def release_memory(self): ...
    def warm_up(self): ...
    def close(self): ...


BACKEND = ComputeBackend(
    name="toy", order=9, dtypes=("quarters",), library="json", extra="toy", cpu_only=True,
    open=ToyEncoder,
)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the package with one more file."""
    (tmp_path / "toy_backend.py").write_text(TOY)
    monkeypatch.setattr(worker.encoder, "__path__", [*worker.encoder.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "worker.encoder.toy_backend", raising=False)


@pytest.mark.usefixtures("toy")
def test_one_file_adds_a_backend_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDQ_BACKEND", "toy")
    monkeypatch.setenv("EMBEDQ_CACHE_DIR", "/nowhere")
    with EmbeddingService() as service:
        vectors = service.encode(["two words", "one"] * 40, normalize=False)
    np.testing.assert_array_equal(vectors, [[2.0, 0.5], [0.75, 0.25]] * 40)


@pytest.mark.usefixtures("toy")
def test_one_file_adds_a_backend_to_settings_and_tuning() -> None:
    assert Settings.from_env({"EMBEDQ_BACKEND": "toy"}).backend == "toy"
    assert Settings.from_env({"EMBEDQ_DTYPE": "quarters"}).dtype == "quarters"
    assert choose_backend("auto", "quarters").name == "toy"
    ways = tune._ways(True, ["quarters"])
    assert ("toy", "quarters", None) in ways
    assert ("torch", "quarters", None) not in ways
    assert "toy" not in {backend for backend, *_ in tune._ways(False, ["quarters"])}


def test_the_registry_is_the_list_of_allowed_settings() -> None:
    assert list(backends()) == ["torch", "openvino"]
    assert number_formats() == ("float32", "bfloat16", "float16", "int8")
    for variable, allowed in (
        ("EMBEDQ_BACKEND", "auto, torch, openvino"),
        ("EMBEDQ_DTYPE", "auto, float32, bfloat16, float16, int8"),
    ):
        with pytest.raises(SettingsError, match=f"{variable}='x' is not one of {allowed}"):
            Settings.from_env({variable: "x"})


@pytest.mark.parametrize(
    ("backend", "dtype", "chosen"),
    [
        ("auto", "auto", "torch"),
        ("auto", "float16", "torch"),
        ("auto", "int8", "openvino"),
        ("openvino", "auto", "openvino"),
    ],
)
def test_auto_is_the_first_backend_with_the_number_format(
    backend: str, dtype: str, chosen: str
) -> None:
    assert choose_backend(backend, dtype).name == chosen


def test_a_format_of_another_backend_is_a_wrong_setting() -> None:
    message = "dtype 'int8' is none of auto, float32, bfloat16, float16$"
    with pytest.raises(SettingsError, match=message):
        load(ModelSpec("m"), backend="torch", dtype="int8")


def test_a_backend_without_its_library_gives_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, backend in backends().items():
        monkeypatch.setitem(sys.modules, backend.library, None)
        with pytest.raises(SettingsError, match=rf"pip install 'embedq\[{backend.extra}\]'"):
            load(ModelSpec("m"), backend=name)
    assert tune._ways(True, []) == []


def test_lint_extras_and_documents_know_every_backend() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    protected = {name for one in contracts for name in one.get("protected_modules", ())}
    rows = (ROOT / "docs/operations.md").read_text().splitlines()
    settings = (ROOT / "docs" / "settings.md").read_text()
    options = {option.name: option.help or "" for option in verify_command.params}  # type: ignore[attr-defined]
    for name, backend in backends().items():
        assert backend.library in protected
        assert backend.extra in project["project"]["optional-dependencies"]
        assert name in options["backend"]
        assert f"`{name}`" in settings
        for dtype in backend.dtypes:
            assert any(row.startswith(f"| `{name}`") and f"`{dtype}`" in row for row in rows)
