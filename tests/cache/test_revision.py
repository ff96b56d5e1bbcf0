"""The revision of a model: another file, format or limit is another model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import model_info
from worker.cache.revision import revision
from worker.cache.store import open_cache
from worker.contract.errors import ModelUnavailable
from worker.contract.models import ModelInfo, ModelSpec
from worker.contract.settings import Settings

INFO = model_info("m", device="cuda:0")


@pytest.fixture
def model(tmp_path: Path) -> ModelSpec:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return ModelSpec("m", str(tmp_path))


def rewrite(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weightS")


def move(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")


def add(folder: Path) -> None:
    (folder / "1_Pooling/more.json").write_text("")


@pytest.mark.parametrize("change", [rewrite, move, add])
def test_another_file_is_another_revision(
    change: Callable[[Path], None], model: ModelSpec, tmp_path: Path
) -> None:
    before = revision(model, INFO)
    assert revision(model, INFO) == before
    change(tmp_path)
    assert revision(model, INFO) != before


@pytest.mark.parametrize(
    "other",
    [
        replace(INFO, backend="openvino"),
        replace(INFO, dtype="int8"),
        replace(INFO, device="cpu"),
        replace(INFO, dimensions=5),
        replace(INFO, max_tokens=63),
    ],
)
def test_another_way_of_running_it_is_another_revision(other: ModelInfo, model: ModelSpec) -> None:
    assert revision(model, other) != revision(model, INFO)


def test_what_does_not_show_in_a_vector_does_not_count(model: ModelSpec) -> None:
    same = replace(INFO, name="n", device="cuda:1", batch_tokens=7, packed=False)
    assert revision(replace(model, name="n"), same) == revision(model, INFO)


def test_a_model_whose_weights_lie_elsewhere_has_none(model: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelUnavailable, match="its base lies elsewhere"):
        revision(model, INFO)


def test_files_that_are_not_on_this_machine_are_not_fetched() -> None:
    with pytest.raises(ModelUnavailable, match="not to be found"):
        revision(ModelSpec("m", "nobody/nothing-of-that-name"), INFO)


def test_the_packaged_model_has_a_revision() -> None:
    assert len(revision(ModelSpec("m"), INFO)) == 32


def test_there_is_no_cache_unless_it_is_given_room(model: ModelSpec) -> None:
    assert open_cache(Settings(models=(model,)), {"m": INFO}) is None
    assert open_cache(Settings(models=(model,), cache_bytes=1), {"m": INFO}) is not None
