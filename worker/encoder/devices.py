"""Devices of torch, number formats, and the errors of devices."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

import torch

from worker.contract.errors import DeviceUnavailable
from worker.encoder.protocol import Cause

#: In messages of RuntimeErrors: exhausted memory as reported by the CPU's allocator, the drivers of
#: CUDA and ROCm, cuBLAS, cuDNN and MPS. torch's own CUDA allocator raises torch.OutOfMemoryError.
_OUT_OF_MEMORY = (
    *("defaultcpuallocator", "can't allocate memory", "not enough memory"),
    *("cuda error: out of memory", "hip error: out of memory", "mps backend out of memory"),
    *("triton error [cuda]: out of memory", "triton error [hip]: out of memory"),
    *("cublas_status_alloc_failed", "hipblas_status_alloc_failed", "cudnn_status_alloc_failed"),
)
#: A failed kernel makes the process's CUDA context unusable: every later call fails, too. A call
#: that cuBLAS rejects is "CUDA error: CUBLAS_STATUS_…" and leaves the context intact.
_DEVICE_ERROR = re.compile(r"(cuda|hip) error: (?!cublas_|hipblas_)|triton error \[(cuda|hip)\]")


def existing_devices() -> list[str]:
    """Names of the devices of this machine, the best first."""
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def choose_device(name: str) -> torch.device:
    """Return the device `name` (`auto`, `cpu`, `cuda`, `cuda:1`, `mps`).

    Raises `DeviceUnavailable` if this machine does not have it.
    """
    existing = existing_devices()
    chosen = {"auto": existing[0], "cuda": "cuda:0"}.get(name, name)
    if chosen not in existing:
        raise DeviceUnavailable(
            f"device {name!r} is not on this machine; it has {', '.join(existing)}"
        )
    return torch.device(chosen)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the number format `name`; `auto`: float32, on a CUDA GPU its native 16-bit format."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type != "cuda":
        return torch.float32
    with current(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16


def describe(name: str) -> str:
    """Return the hardware of a device: a GPU's own name, else the device's type."""
    try:
        device = choose_device(name)
    except DeviceUnavailable:
        return name
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` the thread's current one inside the block.

    torch itself follows its tensors; other kernels and libraries use the current device.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def default_batch_tokens(device: torch.device) -> int:
    """Tokens of a forward pass that fill `device`, without a measurement.

    A larger batch only adds latency. A CPU is full early, in proportion to its cores; a GPU needs
    tens of thousands of tokens to hide its launches.
    """
    if device.type == "cpu":
        return 1024
    return 65_536 if device.type == "cuda" else 16_384


def cause(error: BaseException) -> Cause:
    """Return the cause of an exception of torch, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return Cause.MEMORY
    if not isinstance(error, RuntimeError):
        return Cause.TEXT
    message = str(error).lower()
    if any(sign in message for sign in _OUT_OF_MEMORY):
        return Cause.MEMORY
    return Cause.DEVICE if _DEVICE_ERROR.search(message) else Cause.TEXT


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a device or of this machine was exhausted."""
    return cause(error) is Cause.MEMORY


def limit_memory(device: torch.device, share: float) -> None:
    """Limit torch to a share of a GPU's memory, for other processes on the GPU."""
    if device.type == "cuda" and share < 1.0:
        torch.cuda.set_per_process_memory_fraction(share, device)


def release_cached_memory(device: torch.device) -> None:
    """Return the memory that torch caches to `device`."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
