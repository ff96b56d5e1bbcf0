"""embedq's own layers of BERT: the models that use them, and unchanged vectors."""

from __future__ import annotations

import logging
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tests import tiny_models
from worker.contract.models import ModelSpec
from worker.encoder import library, load
from worker.encoder.reference import Reference
from worker.encoder.torch_backend import bert
from worker.encoder.torch_backend.bert import BertLayers
from worker.encoder.torch_backend.forward import GROUP_COST, ONE_LENGTH, PackedForward

TEXTS = ["the", "the queue holds texts", "job " * 20, "batch is full " * 40, "zebra 日本語"]


def opened(path: Path, dtype: torch.dtype = torch.float32) -> SentenceTransformer:
    return library.open_model(ModelSpec("tiny", str(path)), torch.device("cpu"), dtype)


on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="these layers are for x86"
)


@on_x86
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_own_layers_give_the_vectors_of_the_packed_transformer(family: str, tmp_path: Path) -> None:
    path = tiny_models.FAMILIES[family](tmp_path)
    batch = load(ModelSpec("tiny", str(path)), device="cpu").tokenize(TEXTS)
    with torch.inference_mode():
        own = PackedForward(opened(path), ONE_LENGTH, BertLayers)(batch)
        plain = PackedForward(opened(path), GROUP_COST)(batch)
    np.testing.assert_allclose(own, plain, atol=1e-6, rtol=0)


@on_x86
@pytest.mark.parametrize("texts", range(1, 12))
def test_the_rows_that_fill_a_batch_up_change_no_vector(texts: int, tmp_path: Path) -> None:
    path = tiny_models.bert(tmp_path)
    batch = load(ModelSpec("tiny", str(path)), device="cpu").tokenize(["the queue", "a"] * texts)
    with torch.inference_mode():
        own = PackedForward(opened(path), ONE_LENGTH, BertLayers)(batch)
        alone = PackedForward(opened(path), ONE_LENGTH, BertLayers)(batch.slice(0, 2))
    np.testing.assert_allclose(own, np.tile(alone, (texts, 1)), atol=1e-6, rtol=0)


@on_x86
@pytest.mark.parametrize("texts", [1, 3])
def test_texts_of_every_length_get_the_vectors_that_they_get_alone(
    texts: int, tmp_path: Path
) -> None:
    path = tiny_models.bert(tmp_path)
    given = ["the queue " * words for words in range(1, 20) for _ in range(texts)]
    batch = load(ModelSpec("tiny", str(path)), device="cpu").tokenize(given)
    forward = PackedForward(opened(path), ONE_LENGTH, BertLayers)
    with torch.inference_mode():
        together = forward(batch)
        alone = np.concatenate([forward(batch.slice(n, n + 1)) for n in range(len(batch))])
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=0)


@on_x86
def test_a_text_whose_vector_is_no_number_leaves_the_others_theirs(tmp_path: Path) -> None:
    path = tiny_models.bert(tmp_path)
    batch = load(ModelSpec("tiny", str(path)), device="cpu").tokenize(
        [*["the queue " * words for words in range(1, 16)], "zebra " * 2, "zebra " * 5]
    )
    model = opened(path)
    sound = PackedForward(model, ONE_LENGTH, BertLayers)
    broken = model.transformers_model.get_input_embeddings().weight.detach().clone()
    with torch.inference_mode():
        expected = sound(batch)
        broken[batch.ids[-2]] = torch.nan
        model.transformers_model.get_input_embeddings().weight.data = broken
        found = PackedForward(model, ONE_LENGTH, BertLayers)(batch)
    assert np.isnan(found[-2:]).all()
    np.testing.assert_allclose(found[:-2], expected[:-2], atol=1e-6, rtol=0)


@on_x86
def test_batches_of_many_sizes_are_computed_in_few_numbers_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = set()
    norm = bert.layer_norm

    def counted(given: torch.Tensor, *more: object) -> torch.Tensor:
        rows.add(len(given))
        return norm(given, *more)

    monkeypatch.setattr(bert, "layer_norm", counted)
    path = tiny_models.bert(tmp_path)
    batch = load(ModelSpec("tiny", str(path)), device="cpu").tokenize(["the"] * 200)
    forward = PackedForward(opened(path), ONE_LENGTH, BertLayers)
    rows.clear()
    with torch.inference_mode():
        for texts in range(100, 200):
            forward(batch.slice(0, texts))
    assert len(rows) <= 40


@on_x86
def test_own_layers_that_give_other_vectors_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bert, "position_offset", lambda _: 0)
    spec = ModelSpec("tiny", str(tiny_models.roberta(tmp_path)))
    with caplog.at_level(logging.WARNING, "worker.encoder"):
        encoder = load(spec, device="cpu")
    assert encoder.info.packed
    (warning,) = caplog.messages
    assert warning.startswith("model tiny cannot run by the path 'layers': vectors differ by")
    want = Reference(spec, device="cpu").encode_alone(TEXTS)
    found = encoder.forward(encoder.tokenize(TEXTS))
    np.testing.assert_allclose(found, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", sorted(set(tiny_models.FAMILIES) - {"bert", "roberta"}))
def test_models_of_other_families_keep_their_layers(family: str, tmp_path: Path) -> None:
    assert not bert.supports(opened(tiny_models.FAMILIES[family](tmp_path)))


def test_other_number_formats_activations_and_machines_keep_the_models_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_models.bert(tmp_path)
    assert not bert.supports(opened(path, torch.bfloat16))
    model = opened(path)
    model.transformers_model.config.hidden_act = "gelu_new"
    assert not bert.supports(model)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not bert.supports(opened(path))


def test_a_linear_layer_that_is_something_else_sends_the_model_to_its_own_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Adapted(torch.nn.Linear):
        """As wrapped by a library for fine-tuning."""

    def adapted(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> SentenceTransformer:
        model = library.open_model(spec, device, dtype)
        model.transformers_model.encoder.layer[1].output.dense.__class__ = Adapted
        return model

    monkeypatch.setattr("worker.encoder.torch_backend.loading.open_model", adapted)
    spec = ModelSpec("tiny", str(tiny_models.bert(tmp_path)))
    with caplog.at_level(logging.WARNING):
        encoder = load(spec, device="cpu")
    found = encoder.forward(encoder.tokenize(TEXTS))
    want = Reference(spec, device="cpu").encode_alone(TEXTS)
    np.testing.assert_allclose(found, want, atol=1e-5, rtol=0)
    assert encoder.info.packed
