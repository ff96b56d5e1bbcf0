"""A sentence-transformers model run by OpenVINO, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from worker.contract.errors import ModelUnavailable, SettingsError
from worker.contract.models import UNLIMITED, ModelInfo, ModelSpec
from worker.encoder import accuracy, devices, probe
from worker.encoder.library import matryoshka_sizes, open_model
from worker.encoder.openvino_forward import RectangleForward
from worker.encoder.openvino_graph import graph
from worker.encoder.protocol import Cause
from worker.encoder.token_rules import token_rules
from worker.encoder.tokenizer import Tokenizer
from worker.encoder.tokens import TokenBlock

#: OpenVINO's name for the numbers that each format computes in; int8 is in the graph itself.
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "f32"}
#: Tokens of a full batch: rectangles waste less, the more texts they choose from.
_BATCH_TOKENS = 4096


def load_openvino(
    spec: ModelSpec,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int | None = None,
    threads: int | None = None,
    min_cosine: float = accuracy.MIN_COSINE,
    cache: Path,
) -> OpenVinoEncoder:
    """Load `spec`; see `worker.encoder.load` for arguments and errors."""
    if device not in ("auto", "cpu"):
        raise SettingsError(f"backend openvino runs on the cpu, not on {device!r}")
    dtype = "float32" if dtype == "auto" else dtype
    if dtype not in _PRECISIONS:
        raise SettingsError(f"dtype {dtype!r} is none of auto, {', '.join(_PRECISIONS)}")
    model = open_model(spec, torch.device("cpu"), torch.float32)
    rules, rust = token_rules(model)
    tokenizer = Tokenizer(rust, rules)
    if model.transformers_model is None or not rules.pool_prompt:
        raise ModelUnavailable(
            f"model {spec.name!r} does not run on openvino: it is a table of token vectors, "
            "or leaves its prompt out of pooling"
        )
    texts = [*probe.probe_texts(model), *accuracy.TEXTS]
    expected = np.concatenate([model.encode([text], show_progress_bar=False) for text in texts])
    cores = threads or torch.get_num_threads()
    try:
        forward = RectangleForward(
            graph(model, tokenizer, int8=dtype == "int8", cache=cache),
            _PRECISIONS[dtype],
            cores,
            pad_id=model.tokenizer.pad_token_id or 0,
            limit=rules.limit,
            dimensions=model.truncate_dim,
        )
        found = forward(tokenizer(texts))
    except ImportError as error:
        raise SettingsError("dtype int8 needs nncf: pip install 'embedq[openvino]'") from error
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelUnavailable(f"model {spec.name!r} does not run on openvino: {reason}") from error
    cosine = None
    if dtype == "float32":
        if objection := probe.objection(found, expected, exact=True):
            raise ModelUnavailable(f"model {spec.name!r} does not run on openvino: {objection}")
    else:
        values = accuracy.cosines(found, expected)
        cosine = accuracy.check(spec, values, dtype, min_cosine)
    info = ModelInfo(
        name=spec.name,
        dimensions=expected.shape[1],
        max_tokens=rules.limit or UNLIMITED,
        device="cpu",
        backend="openvino",
        dtype=dtype,
        packed=False,
        batch_tokens=batch_tokens or _BATCH_TOKENS,
        prompts={name: prompt or "" for name, prompt in model.prompts.items()},
        default_prompt_name=model.default_prompt_name,
        matryoshka=matryoshka_sizes(model, expected.shape[1]),
        path="padded",
        cosine=cosine,
    )
    return OpenVinoEncoder(info, tokenizer, forward)


class OpenVinoEncoder:
    """The OpenVINO backend; see `Encoder` for the threads and promises of each method."""

    reserved = True

    def __init__(self, info: ModelInfo, tokenizer: Tokenizer, forward: RectangleForward) -> None:
        self._info = info
        self._tokenizer = tokenizer
        self._forward = forward

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def padding(self) -> int:
        return self._forward.padding

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> TokenBlock:
        return self._tokenizer(texts, prompt)

    def enter(self, *, yielding: bool) -> None:
        """Its own threads compute."""

    @property
    def slots(self) -> int:
        return self._forward.cores

    def forward(self, batch: TokenBlock, *, cores: int = 1) -> NDArray[np.float32]:
        return self._forward(batch, cores)

    def cause(self, error: BaseException) -> Cause:
        return Cause.MEMORY if "bad_alloc" in str(error) else devices.cause(error)

    def release_memory(self) -> None:
        self._forward.forget_buffers()

    def warm_up(self) -> None:
        self._forward.prepare()
        long = self.tokenize(["warm up " * 16])
        self.forward(TokenBlock.join([long] * max(1, self._info.batch_tokens // long.tokens)))

    def close(self) -> None:
        del self._forward, self._tokenizer
