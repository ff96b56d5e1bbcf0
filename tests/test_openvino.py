"""The OpenVINO backend: the library's vectors, stored graphs, and plain errors if it cannot."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from tests import tiny_models
from worker.contract.errors import ModelUnavailable, SettingsError
from worker.contract.models import ModelSpec
from worker.encoder import Encoder, load
from worker.encoder.reference import Reference
from worker.encoder.tokens import TokenBlock

# The libraries of this backend take seconds to load and to convert a model.
pytestmark = pytest.mark.slow

openvino_graph = pytest.importorskip("worker.encoder.openvino_backend.graph")

TEXTS = [
    "",
    "the queue",
    "job " * 30,
    "one batch is full of texts",
    "zebra 🙂",
    "the",
    "batch " * 90,
]


def opened(path: Path | None, cache: Path, dtype: str = "auto", **options: float) -> Encoder:
    spec = ModelSpec("tiny", None if path is None else str(path))
    return load(spec, device="cpu", backend="openvino", dtype=dtype, cache=cache, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_every_shape_of_batch_gives_the_librarys_vectors(family: str, tmp_path: Path) -> None:
    path = tiny_models.FAMILIES[family](tmp_path)
    encoder = opened(path, tmp_path / "cache")
    want = Reference(ModelSpec("tiny", str(path)), device="cpu").encode_alone(TEXTS)
    block = encoder.tokenize(TEXTS)
    singles = [block.slice(index, index + 1) for index in range(len(block))]
    together = encoder.forward(block)
    np.testing.assert_allclose(together, want, atol=1e-5, rtol=0)
    assert together.flags.c_contiguous
    alone = np.concatenate([encoder.forward(single) for single in singles])
    np.testing.assert_allclose(alone, want, atol=1e-5, rtol=0)
    backwards = encoder.forward(TokenBlock.join(singles[::-1]))[::-1]
    np.testing.assert_allclose(backwards, want, atol=1e-5, rtol=0)


def test_a_result_outlives_the_next_batch(tmp_path: Path) -> None:
    encoder = opened(tiny_models.bert(tmp_path), tmp_path / "cache")
    first = encoder.forward(encoder.tokenize(["the queue"]))
    kept = first.copy()
    encoder.forward(encoder.tokenize(["another text"]))
    np.testing.assert_array_equal(first, kept)


def test_prompts_and_cut_vectors_are_the_librarys(tmp_path: Path) -> None:
    path = tiny_models.bert(
        tmp_path,
        prompts={"query": "the job "},
        default_prompt="query",
        after=(tiny_models.dense(),),
        truncate_dim=8,
    )
    encoder = opened(path, tmp_path / "cache")
    reference = Reference(ModelSpec("tiny", str(path)), device="cpu")
    for prompt in (None, "", "vector "):
        found = encoder.forward(encoder.tokenize(TEXTS, prompt))
        np.testing.assert_allclose(found, reference.encode_alone(TEXTS, prompt), atol=1e-5, rtol=0)
    assert encoder.info.dimensions == 8


def test_a_kept_graph_is_not_converted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_models.bert(tmp_path)
    first = opened(path, tmp_path / "cache")
    monkeypatch.setattr(openvino_graph, "_converted", lambda _: pytest.fail("converted again"))
    second = opened(path, tmp_path / "cache")
    block = first.tokenize(TEXTS)
    np.testing.assert_allclose(first.forward(block), second.forward(block), atol=1e-6, rtol=0)
    assert [entry.name for entry in (tmp_path / "cache/openvino").glob("draft-*")] == []


def test_a_new_graph_takes_the_place_of_one_that_nobody_uses(tmp_path: Path) -> None:
    unused = tmp_path / "cache/openvino" / ("0" * 32)
    unused.mkdir(parents=True)
    os.utime(unused, (0, 0))
    opened(tiny_models.bert(tmp_path), tmp_path / "cache")
    assert len(list(unused.parent.iterdir())) == 1
    assert not unused.exists()


def test_a_graph_that_is_read_counts_as_used(tmp_path: Path) -> None:
    path = tiny_models.bert(tmp_path)
    opened(path, tmp_path / "cache")
    (folder,) = (tmp_path / "cache/openvino").iterdir()
    os.utime(folder, (0, 0))
    opened(path, tmp_path / "cache")
    assert folder.stat().st_mtime > 0


def test_a_graph_is_of_these_very_weights(tmp_path: Path) -> None:
    path, cache = tiny_models.bert(tmp_path), tmp_path / "cache"
    opened(path, cache)
    weights = load_file(path / "model.safetensors")
    next(iter(weights.values())).add_(0.1)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    opened(path, cache)
    assert len(list((cache / "openvino").iterdir())) == 2


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, "worker.encoder"):
        encoder = opened(tiny_models.bert(tmp_path), tmp_path / "file")
    assert encoder.forward(encoder.tokenize(["the"])).shape == (1, tiny_models.HIDDEN)
    assert "The converted model is not kept" in caplog.text


def test_int8_states_how_close_it_comes_and_keeps_its_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("nncf")
    with caplog.at_level(logging.WARNING, "worker.encoder"):
        encoder = opened(None, tmp_path, "int8")
    assert (encoder.info.backend, encoder.info.dtype) == ("openvino", "int8")
    assert encoder.info.cosine is not None
    assert 0.99 < encoder.info.cosine < 1.0
    assert "in int8: cosine to float32 0.99" in caplog.text
    monkeypatch.setattr(openvino_graph, "_quantized", lambda *_: pytest.fail("quantised again"))
    with pytest.raises(ModelUnavailable, match=r"below EMBEDQ_MIN_COSINE=0\.99999"):
        opened(None, tmp_path, "int8", min_cosine=0.99999)


def test_an_unconvertible_model_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_: SentenceTransformer) -> None:
        raise RuntimeError("no rule for aten::odd\nand a long trace")

    monkeypatch.setattr(openvino_graph, "_converted", unknown)
    with pytest.raises(ModelUnavailable) as caught:
        opened(tiny_models.bert(tmp_path), tmp_path / "cache")
    assert caught.value.message == "model 'tiny' does not run on openvino: no rule for aten::odd"


@pytest.mark.parametrize(
    "make",
    [
        tiny_models.static,
        lambda folder: tiny_models.bert(folder, include_prompt=False),
        # If its window sees padding alone, its attention has no defined result.
        tiny_models.modernbert,
    ],
    ids=["table", "prompt not pooled", "sliding window"],
)
def test_a_model_that_the_graph_cannot_hold_is_refused(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelUnavailable, match="does not run on openvino"):
        opened(make(tmp_path), tmp_path / "cache")


def test_openvino_that_is_not_installed_is_a_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "worker.encoder.openvino_backend.encoder", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SettingsError, match=r"pip install 'embedq\[openvino\]'"):
        opened(None, tmp_path)


def test_another_device_or_format_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="runs on the cpu, not on 'cuda'"):
        load(ModelSpec("m"), device="cuda", backend="openvino", cache=tmp_path)
    with pytest.raises(SettingsError, match="dtype 'float3'"):
        load(ModelSpec("m"), backend="openvino", dtype="float3", cache=tmp_path)
