"""Loading a model: its checks, its log, and its errors."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tests import tiny_models
from worker.contract.errors import (
    DeviceMemoryError,
    DeviceUnavailable,
    ModelUnavailable,
    SettingsError,
)
from worker.contract.models import ModelSpec
from worker.encoder import devices, library, load, token_rules
from worker.encoder.layout import Group
from worker.encoder.protocol import Cause
from worker.encoder.reference import Reference
from worker.encoder.tokenizer import Tokenizer
from worker.encoder.tokens import TokenBlock
from worker.encoder.torch_backend import bert, forward, set_allocator

TEXTS = ["the queue", "", "job " * 30, "one batch is full of texts"]


def tiny(path: Path) -> ModelSpec:
    return ModelSpec("tiny", str(path))


def test_a_model_that_packs_wrongly_is_run_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny_models.roberta(tmp_path)
    monkeypatch.setattr(bert, "supports", lambda _: False)
    monkeypatch.setattr(forward, "position_offset", lambda _: 0)
    with caplog.at_level(logging.WARNING, "worker.encoder"):
        encoder = load(tiny(path), device="cpu")
    assert not encoder.info.packed
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "tiny cannot run by the path 'groups': vectors differ by" in caplog.text
    want = Reference(tiny(path), device="cpu").encode_alone(TEXTS)
    found = encoder.forward(encoder.tokenize(TEXTS))
    np.testing.assert_allclose(found, want, atol=1e-5, rtol=0)


def test_a_model_whose_window_is_overlooked_is_run_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Group, "mask", lambda self, causal, _: self._make_mask(causal, None))
    assert not load(tiny(tiny_models.modernbert(tmp_path)), device="cpu").info.packed


def test_a_model_that_no_way_gets_right_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_nothing(model: SentenceTransformer) -> Tokenizer:
        rules = replace(token_rules.tokenizer_of(model).rules, add_special_tokens=False)
        return Tokenizer(model.tokenizer.backend_tokenizer, rules)

    monkeypatch.setattr("worker.encoder.torch_backend.loading.tokenizer_of", add_nothing)
    with pytest.raises(ModelUnavailable, match="other vectors here than in sentence-transformers"):
        load(tiny(tiny_models.bert(tmp_path)), device="cpu")


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(source: str) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        load(ModelSpec("mine", source), device="cpu")
    assert caught.value.message == f"model 'mine': {source} is not a directory"


def test_a_folder_without_a_model_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        load(ModelSpec("mine", str(tmp_path)), device="cpu")
    assert caught.value.message.startswith(f"model 'mine' cannot be loaded from {tmp_path}: ")
    assert "\n" not in caught.value.message


def test_a_model_that_the_hub_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there(*_: object, **__: object) -> None:
        raise OSError("no such model")

    monkeypatch.setattr(library, "SentenceTransformer", not_there)
    monkeypatch.setattr(library, "model_info", not_there)
    with pytest.raises(ModelUnavailable, match="'mine' cannot be loaded from some/one: no such"):
        load(ModelSpec("mine", "some/one"), device="cpu")


def test_a_damaged_model_is_unavailable(tmp_path: Path) -> None:
    path = tiny_models.bert(tmp_path)
    (path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        load(tiny(path), device="cpu")


@pytest.mark.parametrize("device", ["cuda:17", "tpu", "cpu:1"])
def test_a_device_that_is_not_there_is_named_beside_those_that_are(device: str) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        load(ModelSpec("m"), device=device)
    assert caught.value.message.startswith(f"device '{device}' is not on this machine; it has ")
    assert caught.value.message.endswith("cpu")


def test_an_unknown_backend_or_number_format_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match="backend 'abacus'"):
        load(ModelSpec("m"), backend="abacus")
    with pytest.raises(SettingsError, match="dtype 'float3'"):
        load(ModelSpec("m"), dtype="float3", device="cpu")


def test_a_model_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(library, "SentenceTransformer", full)
    with pytest.raises(DeviceMemoryError, match="'m' does not fit into the memory of cpu"):
        load(ModelSpec("m"), device="cpu")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), Cause.MEMORY),
        (MemoryError(), Cause.MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), Cause.MEMORY),
        (torch.AcceleratorError("CUDA error: out of memory\nSearch for `cuda"), Cause.MEMORY),
        (RuntimeError("CUDA error: out of memory"), Cause.MEMORY),
        (RuntimeError("HIP error: out of memory"), Cause.MEMORY),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            Cause.MEMORY,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), Cause.MEMORY),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), Cause.MEMORY),
        (RuntimeError("Triton Error [CUDA]: out of memory"), Cause.MEMORY),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), Cause.DEVICE),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), Cause.DEVICE),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), Cause.DEVICE),
        (RuntimeError("HIP error: unspecified launch failure"), Cause.DEVICE),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access"), Cause.DEVICE),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `x`"), Cause.TEXT),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Cause.TEXT),
        (ValueError("not enough memory of the plot"), Cause.TEXT),
        (ValueError("CUDA error: in a text"), Cause.TEXT),
    ],
)
def test_errors_of_memory_and_device_are_told_from_those_of_texts(
    error: Exception, expected: Cause
) -> None:
    assert devices.cause(error) is expected


def test_a_real_failed_allocation_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.float32)
    assert devices.is_out_of_memory(caught.value)


@pytest.mark.parametrize(("weight", "chosen"), [(1.0, "float16"), (1e6, "bfloat16")])
def test_a_gpu_runs_the_16_bit_format_that_is_closer_to_float32(
    weight: float, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, as if `auto` were bfloat16 there; a weight of a million overflows float16."""
    path = tiny_models.bert(tmp_path)
    model = SentenceTransformer(str(path), device="cpu")
    with torch.no_grad():
        model[0].auto_model.encoder.layer[0].output.LayerNorm.weight[0] = weight
    model.save(str(path), create_model_card=False)
    formats = {"auto": torch.bfloat16}
    monkeypatch.setattr(devices, "choose_dtype", lambda name, _: formats[name])
    info = load(tiny(path), device="cpu").info
    assert info.dtype == chosen
    assert info.cosine is not None
    assert info.cosine > 0.99


def test_models_with_growing_residuals_stay_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "choose_dtype", lambda *_: torch.bfloat16)
    assert load(tiny(tiny_models.qwen3(tmp_path)), device="cpu").info.dtype == "bfloat16"


def test_memory_of_cuda_grows_in_place_unless_the_user_set_it_otherwise() -> None:
    own = {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}
    set_allocator(own)
    assert len(own) == 1
    env: dict[str, str] = {}
    set_allocator(env)
    assert set(env.values()) == {"expandable_segments:True"}


def test_a_share_of_a_gpus_memory_bounds_what_torch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[tuple[float, torch.device]] = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *bound: bounds.append(bound)
    )
    for device, share in (("cpu", 0.5), ("cuda:0", 1.0), ("cuda:1", 0.25)):
        devices.limit_memory(torch.device(device), share)
    assert bounds == [(0.25, torch.device("cuda:1"))]


def test_the_second_gpu_is_current_while_it_runs() -> None:
    block = devices.current(torch.device("cuda:1"))
    assert isinstance(block, torch.cuda.device)
    assert block.idx == 1


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (tiny_models.bert, "layers"),
        (tiny_models.modernbert, "groups"),
        (tiny_models.static, "table"),
    ],
)
def test_info_names_the_path_of_forward_passes(make: Any, path: str, tmp_path: Path) -> None:
    if path == "layers" and platform.machine() not in ("x86_64", "AMD64"):
        path = "groups"
    assert load(tiny(make(tmp_path)), device="cpu").info.path == path


def test_every_model_has_a_slot_for_each_core(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for number in range(2):
            encoder = load(tiny(tiny_models.bert(tmp_path / f"{number}")), device="cpu")
            encoder.warm_up()
            assert encoder.slots == 3
            assert encoder.reserved
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_only_the_threads_of_yielding_slots_have_a_low_priority(tmp_path: Path) -> None:
    encoder = load(tiny(tiny_models.bert(tmp_path)), device="cpu")

    def priority(yielding: bool) -> int:
        # The same as with two models.
        for _ in range(2):
            encoder.enter(yielding=yielding)
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        own = os.getpriority(os.PRIO_PROCESS, os.getpid())
        assert one.submit(priority, False).result() == own
        assert other.submit(priority, True).result() == min(own + 10, 19)


def test_info_says_what_was_asked_for(tmp_path: Path) -> None:
    encoder = load(tiny(tiny_models.bert(tmp_path)), device="cpu", batch_tokens=77)
    info = encoder.info
    assert (info.name, info.device, info.backend, info.dtype) == ("tiny", "cpu", "torch", "float32")
    assert (info.batch_tokens, info.max_tokens) == (77, tiny_models.MAX_TOKENS)
    assert info.matryoshka == ()
    encoder.warm_up()
    encoder.release_memory()
    encoder.close()


def test_matryoshka_sizes_are_read_from_the_configuration(tmp_path: Path) -> None:
    path = tiny_models.bert(tmp_path)
    config = json.loads((path / "config.json").read_text())
    config |= {"is_matryoshka": True, "matryoshka_dimensions": [16, 8, tiny_models.HIDDEN]}
    (path / "config.json").write_text(json.dumps(config))
    assert load(tiny(path), device="cpu").info.matryoshka == (8, 16)


def test_matryoshka_sizes_are_read_from_the_card_of_a_model_trained_for_them(
    tmp_path: Path,
) -> None:
    path = tiny_models.bert(tmp_path)
    (path / "README.md").write_text(
        "* Loss: `MatryoshkaLoss` with these parameters:\n  ```json\n  {\n"
        '      "loss": "MultipleNegativesRankingLoss",\n      "matryoshka_dims": [\n'
        "          32,\n          16,\n          4\n      ],\n  }\n  ```\n"
    )
    assert load(tiny(path), device="cpu").info.matryoshka == (4, 16)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, worker.encoder, worker.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_warming_up_survives_a_batch_too_large_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(tiny(tiny_models.bert(tmp_path)), device="cpu")
    sizes: list[int] = []

    def forward(batch: TokenBlock) -> None:
        sizes.append(batch.tokens)
        if batch.tokens > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoder, "forward", forward)
    encoder.warm_up()
    assert sizes[0] < 10
    assert encoder.info.batch_tokens - 64 < sizes[1] <= encoder.info.batch_tokens
