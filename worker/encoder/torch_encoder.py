"""A sentence-transformers model run by torch, in the forward pass that proved right."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from worker.contract.errors import DeviceMemoryError, ModelUnavailable
from worker.contract.models import UNLIMITED, ModelInfo, ModelSpec
from worker.encoder import accuracy, bert, cpu, devices, probe
from worker.encoder.bert import BertLayers
from worker.encoder.forward import (
    GROUP_COST,
    ONE_LENGTH,
    Forward,
    PackedForward,
    PaddedForward,
    StaticForward,
)
from worker.encoder.library import attention_of, matryoshka_sizes, open_model, set_attention
from worker.encoder.protocol import Cause
from worker.encoder.token_rules import token_rules
from worker.encoder.tokenizer import Tokenizer
from worker.encoder.tokens import TokenBlock

#: Batches on a GPU at a time.
_GPU_SLOTS = 2
#: Batches of fewer tokens gain nothing from a second core.
_SMALL_TOKENS = 64
#: Sizes of batches that a GPU is warmed up with, below a full one: each half of the next.
_WARM_HALVINGS = 8
#: Types of transformers that normalise the output of each layer. Their activations stay far below
#: the largest float16, which has three bits more than bfloat16. The residuals of others can grow.
_BOUNDED = frozenset(
    {"bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"}
)
_log = logging.getLogger(__name__)


def load_torch(
    spec: ModelSpec,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int | None = None,
    threads: int | None = None,
    min_cosine: float = accuracy.MIN_COSINE,
    memory_share: float = 1.0,
    padded: bool = False,
) -> TorchEncoder:
    """Load `spec`; see `worker.encoder.load` for arguments and errors.

    `padded`: run in padded batches even where the model could be packed, to compare the two.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    place = devices.choose_device(device)
    devices.limit_memory(place, memory_share)
    with devices.current(place):
        return _load(spec, place, dtype, batch_tokens, min_cosine, padded)


def _load(
    spec: ModelSpec,
    place: torch.device,
    dtype: str,
    batch_tokens: int | None,
    min_cosine: float,
    padded: bool,
) -> TorchEncoder:
    if place.type == "cpu":
        cpu.keep_freed_memory()
    number_format = devices.choose_dtype(dtype, place)
    exact = None if number_format == torch.float32 else _Float32.of(spec, place)
    opened = _open(spec, place, number_format, padded, exact)
    if dtype == "auto" and number_format == torch.bfloat16 and exact is not None and exact.bounded:
        opened = _or_in_float16(opened, spec, place, padded, exact)
    if exact is not None:
        accuracy.check(spec, opened.cosines, opened.dtype, min_cosine)
    info = ModelInfo(
        name=spec.name,
        dimensions=opened.dimensions,
        max_tokens=opened.max_tokens,
        device=str(place),
        backend="torch",
        dtype=opened.dtype,
        packed=opened.forward.packed,
        batch_tokens=batch_tokens or devices.default_batch_tokens(place),
        prompts={name: prompt or "" for name, prompt in opened.model.prompts.items()},
        default_prompt_name=opened.model.default_prompt_name,
        matryoshka=matryoshka_sizes(opened.model, opened.dimensions),
        path=opened.path,
        cosine=None if exact is None else _accuracy(opened),
    )
    return TorchEncoder(info, place, opened.tokenizer, opened.forward)


class TorchEncoder:
    """The torch backend; see `Encoder` for the threads and promises of each method."""

    def __init__(
        self,
        info: ModelInfo,
        device: torch.device,
        tokenizer: Tokenizer,
        forward: Forward,
    ) -> None:
        self._info = info
        self._device = device
        self._tokenizer = tokenizer
        self._forward = forward
        #: One a core; on a GPU one batch is prepared while the other computes.
        self._slots = torch.get_num_threads() if device.type == "cpu" else _GPU_SLOTS
        if isinstance(forward, StaticForward):
            self._slots = 1

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def padding(self) -> int:
        return self._forward.padding

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> TokenBlock:
        return self._tokenizer(texts, prompt)

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def reserved(self) -> bool:
        return not isinstance(self._forward, StaticForward)

    def enter(self, *, yielding: bool) -> None:
        if self._device.type == "cpu":
            cpu.enter_slot(yielding=yielding)

    def forward(self, batch: TokenBlock, *, cores: int = 1) -> NDArray[np.float32]:
        with torch.inference_mode(), devices.current(self._device):
            if cores == 1 or self._device.type != "cpu" or batch.tokens < _SMALL_TOKENS:
                return self._forward(batch)
            with cpu.computing_with(cores):
                return self._forward(batch)

    def cause(self, error: BaseException) -> Cause:
        return devices.cause(error)

    def release_memory(self) -> None:
        devices.release_cached_memory(self._device)
        cpu.return_freed_memory()

    def warm_up(self) -> None:
        if self._device.type != "cpu":
            self._warm_up()
            return
        # With one core, as a slot does: kernels are made for a number of cores.
        with cpu.computing_with(1):
            self._warm_up()

    def _warm_up(self) -> None:
        short, long = self.tokenize(["warm"]), self.tokenize(["warm up " * 16])
        # CUDA loads kernels for a number of rows when it first meets them.
        halvings = _WARM_HALVINGS if self._device.type == "cuda" else 0
        sizes = [self._info.batch_tokens >> by for by in range(halvings, -1, -1)]
        self.forward(short)
        try:
            for tokens in sizes:
                self.forward(TokenBlock.join([long] * max(1, tokens // long.tokens)))
        except RuntimeError as error:
            # The engine finds the size that fits.
            if not devices.is_out_of_memory(error):
                raise
        else:
            return
        # Only here: the exception's frames hold what the failed pass allocated.
        self.release_memory()

    def close(self) -> None:
        del self._forward, self._tokenizer
        devices.release_cached_memory(self._device)


@dataclass(frozen=True, slots=True)
class _Float32:
    """Vectors that reduced number formats are compared with."""

    #: Of `accuracy.TEXTS`, float32 (n, d).
    vectors: NDArray[np.float32]
    #: Whether the model's activations are bounded, so that float16 suffices for all texts.
    bounded: bool

    @classmethod
    def of(cls, spec: ModelSpec, place: torch.device) -> _Float32 | None:
        """None if the model in float32 does not fit on the device."""
        try:
            model = open_model(spec, place, torch.float32)
            vectors = model.encode(list(accuracy.TEXTS), show_progress_bar=False)
        except Exception as error:
            if not (isinstance(error, DeviceMemoryError) or devices.is_out_of_memory(error)):
                raise
        else:
            return cls(vectors, getattr(model.config, "model_type", None) in _BOUNDED)
        _log.warning("model %s: no float32 on %s to compare with", spec.name, place)
        return None


@dataclass(frozen=True, slots=True)
class _Opened:
    """A model in one number format, and the fastest way to run it."""

    model: SentenceTransformer
    dtype: str
    tokenizer: Tokenizer
    max_tokens: int
    forward: Forward
    path: str
    dimensions: int
    #: To the float32 vectors of `accuracy.TEXTS`, float64 (n,); empty if there are none.
    cosines: NDArray[np.float64]


def _open(
    spec: ModelSpec,
    place: torch.device,
    number_format: torch.dtype,
    padded: bool,
    exact: _Float32 | None,
) -> _Opened:
    """Raises `ModelUnavailable` and `DeviceMemoryError`."""
    model = open_model(spec, place, number_format)
    try:
        rules, rust = token_rules(model)
        tokenizer = Tokenizer(rust, rules)
        forward, path, dimensions = _choose_forward(spec, model, tokenizer, padded)
        cosines = np.empty(0)
        if exact is not None:
            with torch.inference_mode():
                cosines = accuracy.cosines(forward(tokenizer(accuracy.TEXTS)), exact.vectors)
    except Exception as error:
        if devices.is_out_of_memory(error):
            raise DeviceMemoryError(
                f"model {spec.name!r} does not fit into the memory of {place} with a small batch"
            ) from error
        raise
    dtype = str(number_format).removeprefix("torch.")
    limit = rules.limit or UNLIMITED
    return _Opened(model, dtype, tokenizer, limit, forward, path, dimensions, cosines)


def _or_in_float16(
    opened: _Opened, spec: ModelSpec, place: torch.device, padded: bool, exact: _Float32
) -> _Opened:
    """Return the more accurate of `opened` and the same model in float16."""
    try:
        other = _open(spec, place, torch.float16, padded, exact)
    except (ModelUnavailable, DeviceMemoryError) as error:
        _log.warning("model %s does not run in float16: %s", spec.name, error.message)
        return opened
    return max(opened, other, key=_accuracy)


def _accuracy(opened: _Opened) -> float:
    """Mean cosine to float32; a vector that is not finite counts as opposite."""
    return float(opened.cosines.mean()) if opened.cosines.size else 0.0


def _choose_forward(
    spec: ModelSpec, model: SentenceTransformer, tokenizer: Tokenizer, padded: bool
) -> tuple[Forward, str, int]:
    """The fastest forward pass that gives the library's vectors, its path and their length.

    Raises `ModelUnavailable` if none does.
    """
    texts = probe.probe_texts(model)
    expected = np.concatenate([model.encode([text], show_progress_bar=False) for text in texts])
    batch = tokenizer(texts)
    exact = model.dtype == torch.float32
    attention = attention_of(model)
    for path, make in _candidates(model, padded):
        try:
            forward = make()
            with torch.inference_mode():
                objection = probe.objection(forward(batch), expected, exact)
        except Exception as error:
            if devices.is_out_of_memory(error):
                raise
            objection = str(error).partition("\n")[0] or type(error).__name__
        if objection is None:
            return forward, path, expected.shape[1]
        _log.warning("model %s cannot run by the path %r: %s", spec.name, path, objection)
        set_attention(model, attention)
    raise ModelUnavailable(
        f"model {spec.name!r} gives other vectors here than in sentence-transformers: {objection}"
    )


def _candidates(
    model: SentenceTransformer, padded: bool
) -> list[tuple[str, Callable[[], Forward]]]:
    """Paths by which the model may run, see `ModelInfo.path`, the fastest first."""
    if model.transformers_model is None:
        return [("table", lambda: StaticForward(model))]
    paths: list[tuple[str, Callable[[], Forward]]] = []
    if not padded and not probe.is_beyond_trial(model):
        if model.device.type == "cuda" and model.dtype != torch.float32:
            paths.append(("kernel", lambda: PackedForward(model, None)))
        if bert.knows(model):
            paths.append(("layers", lambda: PackedForward(model, ONE_LENGTH, BertLayers)))
        paths.append(("groups", lambda: PackedForward(_quickened(model), GROUP_COST)))
    paths.append(("padded", lambda: PaddedForward(_quickened(model))))
    return paths


def _quickened(model: SentenceTransformer) -> SentenceTransformer:
    if model.device.type == "cpu":
        cpu.fuse_activations(model)
        cpu.lay_out_weights(model)
    return model
