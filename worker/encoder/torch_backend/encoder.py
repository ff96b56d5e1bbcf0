"""A loaded model of the torch backend."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from worker.contract.models import ModelInfo
from worker.encoder import devices
from worker.encoder.protocol import Cause
from worker.encoder.tokenizer import Tokenizer
from worker.encoder.tokens import TokenBlock
from worker.encoder.torch_backend import cpu
from worker.encoder.torch_backend.forward import ForwardPass, StaticForward

#: Batches on a GPU at a time: one is prepared while the other computes.
_GPU_SLOTS = 2
#: Batches of fewer tokens do not gain from a second core.
_SMALL_TOKENS = 64
#: Sizes of batches that a GPU is warmed up with, below a full one: each half of the next.
_WARM_HALVINGS = 8


class TorchEncoder:
    """A model on a device of torch; see `Encoder` for the threads and guarantees of each method."""

    def __init__(
        self, info: ModelInfo, device: torch.device, tokenizer: Tokenizer, forward: ForwardPass
    ) -> None:
        self.info = info
        self.tokenize = tokenizer
        self._device = device
        self._forward = forward
        is_lookup = isinstance(forward, StaticForward)
        #: A lookup does not gain from a second batch.
        self.reserved = not is_lookup
        self.slots = 1 if is_lookup else _slots(device)

    @property
    def padding(self) -> int:
        return self._forward.padding

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
            self._run_all_sizes()
            return
        # With one core, as in a slot: kernels are made for a number of cores.
        with cpu.computing_with(1):
            self._run_all_sizes()

    def _run_all_sizes(self) -> None:
        short, long = self.tokenize(["warm"]), self.tokenize(["warm up " * 16])
        # CUDA loads kernels for a number of rows on their first use.
        halvings = _WARM_HALVINGS if self._device.type == "cuda" else 0
        sizes = [self.info.batch_tokens >> by for by in range(halvings, -1, -1)]
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
        # Outside the handler: the exception's frames hold the memory of the failed pass.
        self.release_memory()

    def close(self) -> None:
        del self._forward, self.tokenize
        devices.release_cached_memory(self._device)


def _slots(device: torch.device) -> int:
    return torch.get_num_threads() if device.type == "cpu" else _GPU_SLOTS
