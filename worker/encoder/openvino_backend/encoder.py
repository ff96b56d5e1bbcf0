"""A sentence-transformers model run by OpenVINO, on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from worker.contract.errors import ModelUnavailable, SettingsError
from worker.contract.models import ModelInfo, ModelSpec
from worker.contract.settings import user_cache
from worker.encoder import compare, devices
from worker.encoder.library import describe_model, encode_alone, first_line, open_model
from worker.encoder.openvino_backend.forward import RectangleForward
from worker.encoder.openvino_backend.graph import graph
from worker.encoder.protocol import Cause, LoadOptions
from worker.encoder.token_rules import tokenizer_of
from worker.encoder.tokenizer import Tokenizer
from worker.encoder.tokens import TokenBlock

#: OpenVINO's name for the numbers that each format computes in; int8 is in the graph itself.
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "f32"}
#: Tokens of a full batch. Rectangles hold less padding, the more texts a batch has.
_BATCH_TOKENS = 4096


def load_openvino(spec: ModelSpec, options: LoadOptions) -> OpenVinoEncoder:
    """Load `spec`; see `worker.encoder.load` for errors."""
    dtype = "float32" if options.dtype == "auto" else options.dtype
    model = open_model(spec, torch.device("cpu"), torch.float32)
    tokenizer = tokenizer_of(model)
    if model.transformers_model is None or not tokenizer.rules.pool_prompt:
        raise _unfit(spec, "it is a table of token vectors, or leaves its prompt out of pooling")
    texts = [*compare.probe_texts(model), *compare.TEXTS]
    expected = encode_alone(model, texts)
    try:
        forward = _compiled(model, tokenizer, dtype, options)
        found = forward(tokenizer(texts))
    except ImportError as error:
        raise SettingsError("dtype int8 needs nncf: pip install 'embedq[openvino]'") from error
    except Exception as error:
        raise _unfit(spec, first_line(error)) from error
    info = describe_model(
        spec,
        model,
        expected.shape[1],
        max_tokens=tokenizer.max_tokens,
        device="cpu",
        backend="openvino",
        dtype=dtype,
        packed=False,
        batch_tokens=options.batch_tokens or _BATCH_TOKENS,
        path="padded",
        cosine=_check(spec, found, expected, dtype, options.min_cosine),
    )
    return OpenVinoEncoder(info, tokenizer, forward)


class OpenVinoEncoder:
    """A model in OpenVINO; see `Encoder` for the threads and guarantees of each method."""

    reserved = True

    def __init__(self, info: ModelInfo, tokenizer: Tokenizer, forward: RectangleForward) -> None:
        self.info = info
        self.tokenize = tokenizer
        self.slots = forward.cores
        self._forward = forward

    @property
    def padding(self) -> int:
        return self._forward.padding

    def enter(self, *, yielding: bool) -> None:
        """OpenVINO's own threads compute."""

    def forward(self, batch: TokenBlock, *, cores: int = 1) -> NDArray[np.float32]:
        return self._forward(batch, cores)

    def cause(self, error: BaseException) -> Cause:
        return Cause.MEMORY if "bad_alloc" in str(error) else devices.cause(error)

    def release_memory(self) -> None:
        self._forward.release_buffers()

    def warm_up(self) -> None:
        self._forward.prepare()
        long = self.tokenize(["warm up " * 16])
        self.forward(TokenBlock.join([long] * max(1, self.info.batch_tokens // long.tokens)))

    def close(self) -> None:
        del self._forward, self.tokenize


def _compiled(
    model: SentenceTransformer, tokenizer: Tokenizer, dtype: str, options: LoadOptions
) -> RectangleForward:
    return RectangleForward(
        graph(model, tokenizer, int8=dtype == "int8", cache=options.cache or user_cache()),
        _PRECISIONS[dtype],
        options.threads or torch.get_num_threads(),
        pad_id=model.tokenizer.pad_token_id or 0,
        limit=tokenizer.rules.limit,
        dimensions=model.truncate_dim,
    )


def _check(
    spec: ModelSpec,
    found: NDArray[np.float32],
    expected: NDArray[np.float32],
    dtype: str,
    min_cosine: float,
) -> float | None:
    """Return the mean cosine to float32, None in float32. Raises `ModelUnavailable`."""
    if dtype != "float32":
        return compare.check_cosine(spec, compare.cosines(found, expected), dtype, min_cosine)
    if objection := compare.objection(found, expected, exact=True):
        raise _unfit(spec, objection)
    return None


def _unfit(spec: ModelSpec, reason: str) -> ModelUnavailable:
    return ModelUnavailable(f"model {spec.name!r} does not run on openvino: {reason}")
