"""Vectors of every family of models, in every shape of batch, against the library's."""

from __future__ import annotations

import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers.base.modules import Normalize

from tests import tiny_models
from worker.contract.models import ModelSpec
from worker.encoder import Encoder, library, load
from worker.encoder.reference import Reference
from worker.encoder.tokens import TokenBlock
from worker.encoder.torch_backend import cpu

TEXTS = [
    "",
    "the",
    "the queue holds texts",
    "job " * 20,
    "batch is full " * 40,
    "zebra 日本語 🙂 עולם",
    " \n ",
    "the model runs again " * 6,
    "the",
    "of them and until",
]


def expected(path: Path, prompt: str | None = None) -> NDArray[np.float32]:
    return Reference(ModelSpec("tiny", str(path)), device="cpu").encode_alone(TEXTS, prompt)


def opened(path: Path, *, padded: bool = False) -> Encoder:
    return load(ModelSpec("tiny", str(path)), device="cpu", padded=padded)


def assert_the_library_agrees(path: Path, prompt: str | None = None, **options: bool) -> Encoder:
    """Alone, together, backwards and by threes, each text has the library's vector."""
    encoder, want = opened(path, **options), expected(path, prompt)
    block = encoder.tokenize(TEXTS, prompt)
    singles = [block.slice(index, index + 1) for index in range(len(block))]
    backwards = encoder.forward(TokenBlock.join(singles[::-1]))[::-1]
    threes = [TokenBlock.join(singles[start::3]) for start in range(3)]
    by_threes = np.empty_like(want)
    for start, some in enumerate(threes):
        by_threes[start::3] = encoder.forward(some)
    alone = np.concatenate([encoder.forward(single) for single in singles])
    for found in (alone, encoder.forward(block), backwards, by_threes):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, want, atol=1e-5, rtol=0)
    assert encoder.info.dimensions == want.shape[1]
    return encoder


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_a_text_has_the_librarys_vector_whatever_shares_its_batch(
    family: str, tmp_path: Path
) -> None:
    encoder = assert_the_library_agrees(tiny_models.FAMILIES[family](tmp_path))
    assert encoder.info.packed == (family != "mpnet")


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_padded_batches_give_the_same_vectors(family: str, tmp_path: Path) -> None:
    encoder = assert_the_library_agrees(tiny_models.FAMILIES[family](tmp_path), padded=True)
    assert not encoder.info.packed


@pytest.mark.parametrize("make", [tiny_models.bert, tiny_models.qwen3])
@pytest.mark.parametrize(
    "pooling",
    [
        "cls",
        "max",
        "mean",
        "mean_sqrt_len_tokens",
        "weightedmean",
        "lasttoken",
        ("cls", "mean"),
        ("mean", "max", "weightedmean"),
    ],
    ids=str,
)
def test_every_pooling_is_the_librarys(
    make: Callable[..., Path], pooling: str | tuple[str, ...], tmp_path: Path
) -> None:
    assert assert_the_library_agrees(make(tmp_path, pooling=pooling, after=())).info.packed


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("pooling", ["cls", "max", "mean", "weightedmean", "lasttoken"])
@pytest.mark.parametrize("include_prompt", [True, False], ids=["pooled", "not pooled"])
def test_prompts_count_in_pooling_as_the_model_says(
    pooling: str, include_prompt: bool, padded: bool, tmp_path: Path
) -> None:
    path = tiny_models.bert(tmp_path, pooling=pooling, include_prompt=include_prompt, after=())
    assert_the_library_agrees(path, "prompt of the job ", padded=padded)


def test_a_prompt_that_leaves_nothing_to_pool_is_treated_as_the_library_does(
    tmp_path: Path,
) -> None:
    path = tiny_models.bert(tmp_path, include_prompt=False, after=())
    assert_the_library_agrees(path, "prompt " * 80)


def test_texts_with_different_prompts_share_a_batch(tmp_path: Path) -> None:
    path = tiny_models.bert(tmp_path, include_prompt=False)
    for padded in (False, True):
        encoder = opened(path, padded=padded)
        prompts = ("the job ", "", "vector of the model ")
        joined = TokenBlock.join([encoder.tokenize(TEXTS, prompt) for prompt in prompts])
        want = np.concatenate([expected(path, prompt) for prompt in prompts])
        np.testing.assert_allclose(encoder.forward(joined), want, atol=1e-5, rtol=0)


def test_the_default_prompt_applies_unless_another_is_given(tmp_path: Path) -> None:
    path = tiny_models.bert(
        tmp_path, prompts={"query": "the job ", "plain": "vector "}, default_prompt="query"
    )
    encoder = assert_the_library_agrees(path)
    assert_the_library_agrees(path, "")
    assert_the_library_agrees(path, "vector ")
    assert encoder.info.prompts["query"] == "the job "
    assert encoder.info.default_prompt_name == "query"


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
def test_modules_after_pooling_run_and_their_size_is_the_models(
    padded: bool, tmp_path: Path
) -> None:
    path = tiny_models.bert(tmp_path, after=(tiny_models.dense(), Normalize()))
    encoder = assert_the_library_agrees(path, padded=padded)
    assert encoder.info.dimensions == tiny_models.HIDDEN // 2


def test_a_model_saved_to_give_short_vectors_gives_them(tmp_path: Path) -> None:
    encoder = assert_the_library_agrees(tiny_models.bert(tmp_path, truncate_dim=8))
    assert encoder.info.dimensions == 8


def test_a_table_of_token_vectors_is_a_model_too(tmp_path: Path) -> None:
    encoder = assert_the_library_agrees(tiny_models.static(tmp_path))
    assert encoder.info.packed


def test_the_packaged_model_is_the_librarys() -> None:
    spec = ModelSpec("all-MiniLM-L6-v2")
    encoder = load(spec, device="cpu")
    block = encoder.tokenize(TEXTS)
    expected = Reference(spec, device="cpu").encode_alone(TEXTS)
    with ThreadPoolExecutor(3, initializer=lambda: encoder.enter(yielding=False)) as slots:
        running = [slots.submit(encoder.forward, block, cores=cores) for cores in (1, 1, 2, 2)]
    for found in [encoder.forward(block), *(one.result() for one in running)]:
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
        assert found.flags.c_contiguous
    assert encoder.info.packed
    assert (encoder.info.dimensions, encoder.info.max_tokens) == (384, 256)


@pytest.mark.parametrize("machine", ["this one", "aarch64"])
def test_an_activation_is_fused_on_x86_where_the_block_is_one_that_is_known(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if machine != "this one":
        monkeypatch.setattr(platform, "machine", lambda: machine)
    is_x86 = platform.machine() in {"x86_64", "AMD64"}
    is_fused = is_x86 and torch.backends.mkldnn.is_available()
    for family, blocks in (("bert", 2), ("mpnet", 2), ("qwen3", 0)):
        model = library.open_model(
            ModelSpec("tiny", str(tiny_models.FAMILIES[family](tmp_path / family))),
            torch.device("cpu"),
            torch.float32,
        )
        with torch.inference_mode():
            before = model.encode(TEXTS)
            cpu.fuse_activations(model)
            after = model.encode(TEXTS)
        kinds = [type(module).__name__ for module in model.modules()]
        assert kinds.count("_LinearGelu") == (blocks if is_fused else 0)
        np.testing.assert_allclose(after, before, atol=1e-6, rtol=0)


def test_sixteen_bits_keep_the_direction_of_every_vector() -> None:
    spec = ModelSpec("all-MiniLM-L6-v2")
    encoder = load(spec, device="cpu", dtype="bfloat16")
    found = encoder.forward(encoder.tokenize(TEXTS))
    want = Reference(spec, device="cpu").encode_alone(TEXTS)
    cosines = (found * want).sum(axis=1) / np.linalg.norm(found, axis=1)
    assert encoder.info.dtype == "bfloat16"
    assert cosines.min() > 0.999
