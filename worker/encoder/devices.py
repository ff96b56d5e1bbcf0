"""Which device and number format a model runs in, and what running out of memory looks like."""

from __future__ import annotations

import torch

from worker.contract.errors import DeviceUnavailable, SettingsError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: What the allocators of torch say on a CPU, where they raise a plain RuntimeError.
_CPU_OUT_OF_MEMORY = ("defaultcpuallocator", "can't allocate memory", "not enough memory")


def existing_devices() -> list[str]:
    """Names of the devices of this machine, the best first."""
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def choose_device(name: str) -> torch.device:
    """The device called `name` (`auto`, `cpu`, `cuda`, `cuda:1`, `mps`).

    Raises `DeviceUnavailable` where this machine has none of that name.
    """
    existing = existing_devices()
    wanted = {"auto": existing[0], "cuda": "cuda:0"}.get(name, name)
    if wanted not in existing:
        raise DeviceUnavailable(
            f"device {name!r} is not on this machine; it has {', '.join(existing)}"
        )
    return torch.device(wanted)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format called `name`; `auto`: float32, on a CUDA GPU the 16-bit one it knows.

    Raises `SettingsError` for another name.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    if name not in DTYPES:
        raise SettingsError(f"dtype {name!r} is none of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def default_batch_tokens(device: torch.device) -> int:
    """Tokens of a forward pass that fill `device`, for want of a measurement.

    Beyond it a batch gains nothing but latency. A CPU is full early, in proportion to its cores;
    a GPU needs tens of thousands of tokens before its launches no longer show.
    """
    if device.type == "cpu":
        return min(768 * max(2, torch.get_num_threads()), 16_384)
    return 65_536 if device.type == "cuda" else 16_384


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory did not suffice, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in message for sign in _CPU_OUT_OF_MEMORY)


def release_cached_memory(device: torch.device) -> None:
    """Give memory that torch holds without using it back to `device`."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
