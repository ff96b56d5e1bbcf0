"""A sentence-transformers model run by torch, in the forward pass that proved right."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

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
from worker.encoder.protocol import Begun
from worker.encoder.streams import StreamedForward, Streams
from worker.encoder.token_rules import token_rules
from worker.encoder.tokenizer import Tokenizer
from worker.tokens import TokenBlock

#: How much sooner than a patient batch others get a core, see `nice(2)`: about nine times as much
#: of it where both want all they can get.
_NICE = 10
_log = logging.getLogger(__name__)


def load_torch(
    spec: ModelSpec,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int | None = None,
    threads: int | None = None,
    min_cosine: float = accuracy.MIN_COSINE,
    padded: bool = False,
) -> TorchEncoder:
    """Load `spec`; see `worker.encoder.load` for arguments and errors.

    `padded`: run in padded batches even where the model could be packed, to compare the two.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    place = devices.choose_device(device)
    number_format = devices.choose_dtype(dtype, place)
    exact = None if number_format == torch.float32 else _float32_vectors(spec, place)
    model = open_model(spec, place, number_format)
    if place.type == "cpu":
        cpu.keep_freed_memory()
    try:
        rules, rust = token_rules(model)
        tokenizer = Tokenizer(rust, rules)
        forward, dimensions = _choose_forward(spec, model, tokenizer, padded)
        cosine = None
        if exact is not None:
            with torch.inference_mode():
                found = forward(tokenizer(accuracy.TEXTS))
            cosine = accuracy.checked(spec, found, exact, dtype, min_cosine)
    except Exception as error:
        if devices.is_out_of_memory(error):
            raise DeviceMemoryError(
                f"model {spec.name!r} does not fit into the memory of {place} with a small batch"
            ) from error
        raise
    info = ModelInfo(
        name=spec.name,
        dimensions=dimensions,
        max_tokens=rules.limit or UNLIMITED,
        device=str(place),
        backend="torch",
        dtype=str(number_format).removeprefix("torch."),
        packed=forward.packed,
        batch_tokens=batch_tokens or devices.default_batch_tokens(place),
        prompts={name: prompt or "" for name, prompt in model.prompts.items()},
        default_prompt_name=model.default_prompt_name,
        matryoshka=matryoshka_sizes(model, dimensions),
        cosine=cosine,
    )
    streams = _streams(place, forward)
    if streams is None:
        return TorchEncoder(info, place, tokenizer, forward)
    # Whose turn it is on a core, the system decides.
    express, patient = Streams(len(streams)), Streams(len(streams), nice=_NICE)
    return StreamedEncoder(info, place, tokenizer, forward, streams, express, patient)


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

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def padding(self) -> int:
        return self._forward.padding

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> TokenBlock:
        return self._tokenizer(texts, prompt)

    def forward(self, batch: TokenBlock, *, patient: bool = False) -> NDArray[np.float32]:
        with torch.inference_mode():
            return self._forward(batch)

    def begin(self, batch: TokenBlock, *, patient: bool = False) -> Begun | None:
        return None

    @property
    def express(self) -> Callable[[TokenBlock], NDArray[np.float32]] | None:
        return None

    def is_out_of_memory(self, error: BaseException) -> bool:
        return devices.is_out_of_memory(error)

    def release_memory(self) -> None:
        devices.release_cached_memory(self._device)
        cpu.return_freed_memory()

    def warm_up(self) -> None:
        short, long = self.tokenize(["warm"]), self.tokenize(["warm up " * 16])
        self.forward(short)
        try:
            self.forward(TokenBlock.join([long] * max(1, self._info.batch_tokens // long.tokens)))
        except RuntimeError as error:
            # The engine will find the size that fits.
            if not self.is_out_of_memory(error):
                raise
            self.release_memory()

    def close(self) -> None:
        del self._forward, self._tokenizer
        devices.release_cached_memory(self._device)


class StreamedEncoder(TorchEncoder):
    """On a CPU, each batch in parts; a small one beside a large one, a patient one behind others.

    Three sets of streams, each a thread a core, of which one runs at a time, or `express` and
    another.
    """

    def __init__(
        self,
        info: ModelInfo,
        device: torch.device,
        tokenizer: Tokenizer,
        forward: Forward,
        streams: Streams,
        express: Streams,
        patient: Streams,
    ) -> None:
        self._common = StreamedForward(forward, streams)
        super().__init__(info, device, tokenizer, self._common)
        self._express = StreamedForward(forward, express, here=False)
        self._patient = StreamedForward(forward, patient)
        self._streams = (streams, express, patient)

    @property
    def express(self) -> StreamedForward:
        return self._express

    def forward(self, batch: TokenBlock, *, patient: bool = False) -> NDArray[np.float32]:
        if not patient:
            return super().forward(batch)
        with torch.inference_mode():
            return self._patient(batch)

    def begin(self, batch: TokenBlock, *, patient: bool = False) -> Begun | None:
        return (self._patient if patient else self._common).begin(batch)

    def close(self) -> None:
        for streams in self._streams:
            streams.close()
        del self._common, self._express, self._patient
        super().close()


def _streams(place: torch.device, forward: Forward) -> Streams | None:
    """One stream a core of a CPU; None where there is nothing to share."""
    if place.type != "cpu" or isinstance(forward, StaticForward):
        return None
    return Streams(torch.get_num_threads())


def _float32_vectors(spec: ModelSpec, place: torch.device) -> NDArray[np.float32] | None:
    """The vectors that 16 bits are compared with; None where float32 does not fit."""
    try:
        model = open_model(spec, place, torch.float32)
        vectors: NDArray[np.float32] = model.encode(list(accuracy.TEXTS), show_progress_bar=False)
    except Exception as error:
        if not (isinstance(error, DeviceMemoryError) or devices.is_out_of_memory(error)):
            raise
        _log.warning("model %s: no float32 on %s to compare with", spec.name, place)
        return None
    return vectors


def _choose_forward(
    spec: ModelSpec, model: SentenceTransformer, tokenizer: Tokenizer, padded: bool
) -> tuple[Forward, int]:
    """The fastest forward pass that gives the library's vectors, and their length.

    Raises `ModelUnavailable` where none does.
    """
    texts = probe.probe_texts(model)
    expected = np.concatenate([model.encode([text], show_progress_bar=False) for text in texts])
    batch = tokenizer(texts)
    exact = model.dtype == torch.float32
    attention = attention_of(model)
    for name, make in _candidates(model, padded):
        try:
            forward = make()
            with torch.inference_mode():
                objection = probe.objection(forward(batch), expected, exact)
        except Exception as error:
            if devices.is_out_of_memory(error):
                raise
            objection = str(error).partition("\n")[0] or type(error).__name__
        if objection is None:
            return forward, expected.shape[1]
        _log.warning("model %s does not run %s: %s", spec.name, name, objection)
        set_attention(model, attention)
    raise ModelUnavailable(
        f"model {spec.name!r} gives other vectors here than in sentence-transformers: {objection}"
    )


def _candidates(
    model: SentenceTransformer, padded: bool
) -> list[tuple[str, Callable[[], Forward]]]:
    """Ways to run the model, the fastest first."""
    if model.transformers_model is None:
        return [("as a table", lambda: StaticForward(model))]
    ways: list[tuple[str, Callable[[], Forward]]] = []
    if not padded and not probe.is_beyond_trial(model):
        if model.device.type == "cuda" and model.dtype != torch.float32:
            ways.append(("packed in one kernel", lambda: PackedForward(model, None)))
        if bert.knows(model):
            ways.append(
                ("with layers of its own", lambda: PackedForward(model, ONE_LENGTH, BertLayers))
            )
        ways.append(("packed", lambda: PackedForward(_quickened(model), GROUP_COST)))
    ways.append(("padded", lambda: PaddedForward(_quickened(model))))
    return ways


def _quickened(model: SentenceTransformer) -> SentenceTransformer:
    if model.device.type == "cpu":
        cpu.fuse_activations(model)
        cpu.lay_out_weights(model)
    return model
