"""`embedq verify`: a table that says yes only if the vectors are the library's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from tests import tiny_models
from worker import verify as verification
from worker.cli.verify import command
from worker.contract.errors import DeviceUnavailable
from worker.contract.models import ModelInfo, ModelSpec
from worker.encoder import Encoder, load
from worker.encoder.tokens import TokenBlock
from worker.verify import verify


class Leaky:
    """An encoder; its vectors change a little in a batch of more than one text."""

    def __init__(self, encoder: Encoder, leak: float) -> None:
        self._encoder = encoder
        self._leak = leak

    @property
    def info(self) -> ModelInfo:
        return self._encoder.info

    @property
    def padding(self) -> int:
        return self._encoder.padding

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> TokenBlock:
        return self._encoder.tokenize(texts, prompt)

    def forward(self, batch: TokenBlock) -> NDArray[np.float32]:
        vectors = self._encoder.forward(batch)
        if len(batch) > 1:
            vectors[0] += np.float32(self._leak)
        return vectors


@pytest.mark.parametrize("family", ["bert", "modernbert", "mpnet", "qwen3"])
def test_every_row_passes_on_a_model_that_is_right(family: str, tmp_path: Path) -> None:
    spec = ModelSpec("tiny", str(tiny_models.FAMILIES[family](tmp_path)))
    info, rows = verify(spec, device="cpu")
    assert info.packed == (family != "mpnet")
    assert [row.kind for row in rows if not row.passed] == []
    assert "beyond the limit" in {row.kind for row in rows}


@pytest.mark.slow
def test_every_row_passes_through_openvino(tmp_path: Path) -> None:
    spec = ModelSpec("tiny", str(tiny_models.mpnet(tmp_path)))
    info, rows = verify(spec, device="cpu", backend="openvino", cache=tmp_path / "cache")
    assert (info.backend, info.packed) == ("openvino", False)
    assert [row.kind for row in rows if not row.passed] == []


def test_the_models_prompts_are_verified(tmp_path: Path) -> None:
    path = tiny_models.bert(tmp_path, include_prompt=False, prompts={"ask": "the job "})
    _, rows = verify(ModelSpec("tiny", str(path)), device="cpu")
    assert "prompt 'ask'" in {row.kind for row in rows}
    assert all(row.passed for row in rows)


@pytest.mark.slow
def test_the_command_ends_well_on_the_packaged_model() -> None:
    ended = CliRunner().invoke(command, ["--device", "cpu"])
    assert ended.exit_code == 0
    assert "all-MiniLM-L6-v2 on cpu, torch float32, path layers, 384 dimensions" in ended.output
    assert "all agree" in ended.output


@pytest.mark.parametrize("leak", [1e-3, float("nan")])
def test_the_command_fails_where_a_vector_depends_on_its_neighbours(
    leak: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_models.bert(tmp_path)
    monkeypatch.setattr(verification, "load", lambda *args, **kw: Leaky(load(*args, **kw), leak))
    ended = CliRunner().invoke(command, ["--device", "cpu", "--model", f"tiny={path}"])
    assert ended.exit_code == 1
    assert "DIFFERS" in ended.output


def test_a_device_that_is_not_there_is_the_loaders_error() -> None:
    with pytest.raises(DeviceUnavailable):
        verify(ModelSpec("tiny"), device="cuda:17")
