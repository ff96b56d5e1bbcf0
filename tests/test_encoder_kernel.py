"""Packed attention in one kernel, which runs on CUDA alone: its launches, tested without a GPU.

Real models run on fake tensors of `cuda:0`, which have shapes and no numbers.
"""

from __future__ import annotations

import inspect
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny_models
from worker.encoder.attention import PACKED_ATTENTION, attending_to, packed_attention
from worker.encoder.layout import pack
from worker.encoder.pooling import packed_pooling
from worker.encoder.tokens import TokenBlock
from worker.encoder.torch_backend.forward import OwnLayers

LENGTHS = (5, 1, 12, 5, 30)
FLASH = "aten._flash_attention_forward.default"
#: The operator's arguments by releases of torch, from their `torch/_meta_registrations.py`; the
#: first ten are positional, the others have defaults.
OF_2_6 = (
    *("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p"),
    *("is_causal", "return_debug_mask", "scale", "window_size_left", "window_size_right"),
    *("seqused_k", "alibi_slopes"),
)
OF_2_12 = (*OF_2_6, "block_table", "num_splits")
POSITIONAL = 10


class Indexing(TorchFunctionMode):
    """Computes `tensor[index]` by operators: Python's own way needs a build with CUDA."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.Tensor.__getitem__:
            return func(*args, **kwargs or {})
        tensor, index = args
        index = index if isinstance(index, tuple) else (index,)
        axis = 0
        for at, one in enumerate(index):
            if one is None:
                tensor = tensor.unsqueeze(axis)
            elif one is Ellipsis:
                axis = tensor.ndim - sum(later is not None for later in index[at + 1 :]) - 1
            elif isinstance(one, slice):
                start, stop, step = one.indices(tensor.shape[axis])
                tensor = torch.ops.aten.slice(tensor, axis, start, stop, step)
            else:
                tensor = tensor.select(axis, one)
                axis -= 1
            axis += 1
        return tensor


class Launches(TorchDispatchMode):
    """Counts operators, and refuses those that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        out = func(*args, **kwargs or {})
        waits = name in ("aten._local_scalar_dense.default", "aten.nonzero.default")
        given = [one for one in args if isinstance(one, torch.Tensor)]
        leaves = isinstance(out, torch.Tensor) and out.device.type == "cpu"
        assert not waits, f"{name} waits for the device"
        assert not (leaves and any(one.device.type == "cuda" for one in given)), f"{name} waits"
        self.counted[name] += 1
        return out


def a_batch() -> TokenBlock:
    offsets = np.concatenate(([0], np.cumsum(LENGTHS))).astype(np.int64)
    count = len(LENGTHS)
    return TokenBlock(
        np.ones(offsets[-1], dtype=np.int32),
        offsets,
        np.zeros(count, dtype=np.int32),
        np.zeros(count, dtype=np.bool_),
    )


def move(model: torch.nn.Module) -> None:
    """Give a model fake weights on a GPU."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, own in tensors.items():
                if own is not None:
                    fake = torch.empty(own.shape, dtype=own.dtype, device="cuda:0")
                    parameter = isinstance(own, torch.nn.Parameter)
                    tensors[name] = torch.nn.Parameter(fake, False) if parameter else fake


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (tiny_models.bert, 2),
        (tiny_models.roberta, 2),
        (tiny_models.modernbert, 4),
        (tiny_models.qwen3, 4),
    ],
)
def test_each_layer_launches_one_kernel_and_nothing_waits_for_the_device(
    make: Any, layers: int, tmp_path: Path
) -> None:
    path = str(make(tmp_path))
    model = SentenceTransformer(path, device="cpu", model_kwargs={"dtype": torch.float16})
    with FakeTensorMode(allow_non_fake_inputs=True), Indexing(), torch.inference_mode():
        move(model)
        run = OwnLayers(model)
        assert model.config._attn_implementation == PACKED_ATTENTION
        packed = pack(a_batch(), None, torch.device("cuda:0"))
        pool = packed_pooling(("mean",))
        with Launches() as launches:
            tokens = run(packed)
            assert tokens.shape == (sum(LENGTHS), tiny_models.HIDDEN)
            assert tokens.device == torch.device("cuda:0")
        assert pool(tokens, packed).shape == (len(LENGTHS), tiny_models.HIDDEN)
    assert launches.counted[FLASH] == layers


@pytest.mark.parametrize("names", [OF_2_6, OF_2_12], ids=["2.6 to 2.11", "2.12 and 2.13"])
def test_the_operator_is_called_as_every_release_takes_it(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [inspect.Parameter.POSITIONAL_ONLY] * POSITIONAL + [inspect.Parameter.KEYWORD_ONLY] * (
        len(names) - POSITIONAL
    )
    signature = inspect.Signature(
        [inspect.Parameter(name, kind) for name, kind in zip(names, kinds, strict=True)]
    )
    calls: list[dict[str, Any]] = []

    def stub(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        calls.append(signature.bind_partial(*args, **kwargs).arguments)
        return (args[0], *[None] * 4)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", stub)
    packed = pack(a_batch(), None, torch.device("cpu"))
    tensors = [torch.randn(1, heads, sum(LENGTHS), 8) for heads in (4, 2, 2)]
    layer = torch.nn.Identity()
    with attending_to(packed):
        packed_attention(layer, *tensors, None, scaling=0.5, is_causal=True, sliding_window=4)
        packed_attention(layer, *tensors, None, is_causal=False)
    windowed, whole = calls
    assert windowed["is_causal"]
    assert (windowed["window_size_left"], windowed["window_size_right"]) == (3, 0)
    assert windowed["scale"] == 0.5
    assert not whole["is_causal"]
    assert (whole["window_size_left"], whole["window_size_right"]) == (-1, -1)


def test_the_operator_of_this_release_has_the_arguments_of_these() -> None:
    schema = torch.ops.aten._flash_attention_forward.default._schema
    here = schema.arguments
    assert [one.name for one in here[: len(OF_2_12)]] in (list(OF_2_6), list(OF_2_12))
    assert [one.kwarg_only for one in here[POSITIONAL : len(OF_2_6)]] == [True] * 5
    assert all(one.has_default_value() for one in here[len(OF_2_6) :])
