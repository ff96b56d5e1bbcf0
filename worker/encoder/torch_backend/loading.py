"""Loading of a model by torch, in the number format asked for or in the more accurate one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from worker.contract.errors import DeviceMemoryError, ModelUnavailable
from worker.contract.models import ModelSpec
from worker.encoder import compare, devices
from worker.encoder.library import describe_model, open_model
from worker.encoder.protocol import LoadOptions
from worker.encoder.token_rules import tokenizer_of
from worker.encoder.tokenizer import Tokenizer
from worker.encoder.torch_backend import cpu
from worker.encoder.torch_backend.encoder import TorchEncoder
from worker.encoder.torch_backend.paths import ChosenPath, choose_path

#: Types of transformers that normalise the output of each layer. Their activations stay far below
#: the largest float16, which has three bits more than bfloat16. The residuals of others can grow.
_BOUNDED = frozenset(
    {"bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"}
)
_log = logging.getLogger(__name__)


def load_torch(spec: ModelSpec, options: LoadOptions) -> TorchEncoder:
    """Load `spec`; see `worker.encoder.load` for errors."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = devices.choose_device(options.device)
    devices.limit_memory(device, options.memory_share)
    if device.type == "cpu":
        cpu.keep_freed_memory()
    with devices.current(device):
        return _Loader(spec, device, options).load()


class _Float32(NamedTuple):
    """Vectors to compare smaller number formats with."""

    #: Of `compare.TEXTS`, float32 (n, d).
    vectors: NDArray[np.float32]
    #: Whether the model's activations are bounded, so that float16 suffices for all texts.
    bounded: bool


class _Variant(NamedTuple):
    """A model in one number format, with its fastest forward pass."""

    model: SentenceTransformer
    tokenizer: Tokenizer
    path: ChosenPath
    dtype: str
    #: Of its vectors to those of `_Float32`, float64 (n,); empty without these.
    cosines: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Loader:
    spec: ModelSpec
    device: torch.device
    options: LoadOptions

    def load(self) -> TorchEncoder:
        dtype = devices.choose_dtype(self.options.dtype, self.device)
        exact = None if dtype == torch.float32 else self._float32()
        variant = self._variant(dtype, exact)
        if exact is None:
            return self._encoder(variant, None)
        if self.options.dtype == "auto" and dtype == torch.bfloat16 and exact.bounded:
            variant = self._more_accurate(variant, exact)
        return self._encoder(variant, self._check(variant))

    def _float32(self) -> _Float32 | None:
        """Return None if the model in float32 does not fit on the device."""
        try:
            model = open_model(self.spec, self.device, torch.float32)
            vectors = model.encode(list(compare.TEXTS), show_progress_bar=False)
        except Exception as error:
            if not (isinstance(error, DeviceMemoryError) or devices.is_out_of_memory(error)):
                raise
        else:
            return _Float32(vectors, getattr(model.config, "model_type", None) in _BOUNDED)
        message = "model %s: no float32 on %s to compare with"
        _log.warning(message, self.spec.name, self.device)
        return None

    def _variant(self, dtype: torch.dtype, exact: _Float32 | None) -> _Variant:
        """Raises `ModelUnavailable` and `DeviceMemoryError`."""
        model = open_model(self.spec, self.device, dtype)
        try:
            tokenizer = tokenizer_of(model)
            path = choose_path(self.spec, model, tokenizer, self.options.padded)
            cosines = _cosines(path, tokenizer, exact)
        except Exception as error:
            if devices.is_out_of_memory(error):
                raise DeviceMemoryError(
                    f"model {self.spec.name!r} does not fit into the memory of {self.device} "
                    "with a small batch"
                ) from error
            raise
        return _Variant(model, tokenizer, path, str(dtype).removeprefix("torch."), cosines)

    def _more_accurate(self, variant: _Variant, exact: _Float32) -> _Variant:
        """Return the more accurate of `variant` and the same model in float16."""
        try:
            other = self._variant(torch.float16, exact)
        except (ModelUnavailable, DeviceMemoryError) as error:
            _log.warning("model %s does not run in float16: %s", self.spec.name, error.message)
            return variant
        return max(variant, other, key=lambda one: float(one.cosines.mean()))

    def _check(self, variant: _Variant) -> float:
        least = self.options.min_cosine
        return compare.check_cosine(self.spec, variant.cosines, variant.dtype, least)

    def _encoder(self, variant: _Variant, cosine: float | None) -> TorchEncoder:
        path = variant.path
        info = describe_model(
            self.spec,
            variant.model,
            path.dimensions,
            max_tokens=variant.tokenizer.max_tokens,
            device=str(self.device),
            backend="torch",
            dtype=variant.dtype,
            packed=path.forward.packed,
            batch_tokens=self.options.batch_tokens or devices.default_batch_tokens(self.device),
            path=path.name,
            cosine=cosine,
        )
        return TorchEncoder(info, self.device, variant.tokenizer, path.forward)


def _cosines(path: ChosenPath, tokenizer: Tokenizer, exact: _Float32 | None) -> NDArray[np.float64]:
    if exact is None:
        return np.empty(0)
    with torch.inference_mode():
        return compare.cosines(path.forward(tokenizer(compare.TEXTS)), exact.vectors)
