"""Deliberate faults of a GPU: memory that another process fills, and a device assert."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np
import torch

from bench import models
from bench.texts import texts
from worker.contract.models import ModelSpec
from worker.encoder import Encoder, load
from worker.encoder.tokens import TokenBlock
from worker.engine.encode import BatchEncoder, DeviceLost

_TEXTS, _TEXTS_A_JOB = 4_096, 256
#: Maximum seconds for which the memory stays full.
_FULL_S = 5.0
#: Maximum seconds for all waiting jobs to end, and for a program to answer.
_LONGEST_S = 120.0
#: A token outside every vocabulary.
_NO_TOKEN = 10**7


def filled(encoder: Encoder) -> tuple[str, float]:
    """Encode while another process fills the GPU. Return the outcome and the seconds afterwards."""
    given = texts("mixed", _TEXTS)
    engine = models.RawEngine(encoder)
    found: list[models.Matrix] = []
    thread = threading.Thread(
        target=lambda: found.append(engine.encode(given, _TEXTS_A_JOB)), daemon=True
    )
    try:
        expected = engine.encode(given, _TEXTS_A_JOB)
        encoder.release_memory()
        with _program("fill", encoder.info.device) as other:
            assert other.stdout is not None
            assert other.stdin is not None
            other.stdout.readline()
            thread.start()
            thread.join(_FULL_S)
            waited = thread.is_alive()
            other.stdin.close()
            other.wait(_LONGEST_S)
        freed = time.perf_counter()
        thread.join(_LONGEST_S)
        seconds = time.perf_counter() - freed
    finally:
        engine.close()
    if not found:
        return "jobs LOST", seconds
    right = np.allclose(found[0], expected, atol=2e-3)
    state = "waited" if waited else "did not have to wait"
    splits = f"{engine.engine.memory_splits} batches halved"
    return f"{state}, {splits}, {'all right' if right else 'WRONG vectors'}", seconds


def asserted(spec: ModelSpec) -> tuple[str, float]:
    """Raise a device assert in another process. Return the outcome and its delay in seconds."""
    with _program("assert", spec.name, spec.source or "") as other:
        out, _ = other.communicate(timeout=_LONGEST_S)
    words, _, seconds = out.decode().strip().rpartition(" ")
    return words or f"ended with {other.returncode}", float(seconds or "nan")


def _program(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bench.gpu_faults", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _fill(device: str) -> None:
    """Allocate all free memory, print `full`, and keep the memory until the input ends."""
    held, size = [], 2**32
    while size >= 2**21:
        try:
            held.append(torch.empty(size, dtype=torch.uint8, device=device))
        except torch.OutOfMemoryError:
            size //= 2
    print("full", flush=True)
    sys.stdin.read()


def _assert(name: str, source: str) -> None:
    encoder = load(ModelSpec(name, source or None))
    probe = encoder.tokenize(["probe"])
    forward = BatchEncoder(encoder, encoder.info.batch_tokens, probe)
    wrong = TokenBlock(
        np.full(64, _NO_TOKEN, dtype=np.int32),
        np.arange(0, 65, 8, dtype=np.int64),
        np.zeros(8, dtype=np.int32),
        np.zeros(8, dtype=np.bool_),
    )
    began = time.perf_counter()
    try:
        forward.encode(wrong)
    except DeviceLost as error:
        print(f"lost at once: {error}", time.perf_counter() - began, flush=True)
    else:
        print("NOT NOTICED", time.perf_counter() - began, flush=True)


def main(arguments: Sequence[str]) -> None:
    match arguments:
        case ["fill", device]:
            _fill(device)
        case ["assert", name, source]:
            _assert(name, source)


if __name__ == "__main__":
    main(sys.argv[1:])
