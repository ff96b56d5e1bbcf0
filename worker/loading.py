"""The models of the settings, loaded and warmed up, with progress in the log."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from worker import tuned
from worker.contract.outcomes import Matrix
from worker.contract.settings import Settings
from worker.encoder.protocol import Encoder
from worker.encoder.tokens import TokenBlock

logger = logging.getLogger(__name__)
T = TypeVar("T")
#: New objects between two garbage collections: those of some hundred jobs.
_COLLECTED_OBJECTS = 50_000
#: Seconds for which a thread may hold the interpreter lock while others wait for it.
_TURN_S = 1e-4


def load_encoders(settings: Settings) -> dict[str, Encoder]:
    """Every served model by its name, the default first.

    Raises ModelUnavailable, DeviceUnavailable or DeviceMemoryError.
    """
    return on_passing_thread(lambda: _load_encoders(settings))


def on_passing_thread(call: Callable[[], T]) -> T:
    """Return or raise the result of `call`, run on a thread that ends before this returns.

    OpenMP, which torch uses on a CPU, keeps a team of threads for every thread that ever ran a
    forward pass. If all teams together have more threads than the machine has cores, they sleep
    between kernels instead of spinning: measured a quarter slower. A team ends with its thread,
    so that only the slots have teams.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
            result.set_exception(error)

    thread = threading.Thread(target=run, name="embedq-load", daemon=True)
    thread.start()
    value = result.result()
    thread.join()
    return value


class Ran(NamedTuple):
    """A batch, its vectors float32 (n, d), and the seconds of its forward pass."""

    batch: TokenBlock
    vectors: Matrix
    seconds: float


def batches_of(block: TokenBlock, budget: int) -> Iterator[TokenBlock]:
    """The texts of a block in batches of at most `budget` tokens, or one text, in their order."""
    start = 0
    while start < len(block):
        bound = block.offsets[start] + budget
        stop = max(int(np.searchsorted(block.offsets, bound, side="right")) - 1, start + 1)
        yield block.slice(start, stop)
        start = stop


def run_in_slots(encoder: Encoder, batches: Iterator[TokenBlock]) -> list[Ran]:
    """Run batches as the engine's slots do, on threads of their own; in the order of `batches`.

    Raises the exception of a failed forward pass.
    """
    lock = threading.Lock()
    ran: dict[int, Ran] = {}
    numbered = enumerate(batches)

    def work() -> None:
        encoder.enter(yielding=False)
        while True:
            with lock:
                number, batch = next(numbered, (0, None))
            if batch is None:
                return
            began = time.perf_counter()
            vectors = encoder.forward(batch)
            ran[number] = Ran(batch, vectors, time.perf_counter() - began)

    with ThreadPoolExecutor(encoder.slots) as slots:
        for running in [slots.submit(work) for _ in range(encoder.slots)]:
            running.result()
    return [ran[number] for number in sorted(ran)]


def relieve_collector() -> None:
    """Exclude the models and libraries, which live as long as the process, from collections.

    Reference counts free the objects of jobs, so the collector also runs less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_OBJECTS)


def shorten_turns() -> None:
    """Set the interpreter's switch interval of this process to 0.1 ms instead of 5.

    A forward pass returns to the interpreter after each of its operations. Each time it may wait
    for the turn of a thread that reads messages or writes results.
    """
    sys.setswitchinterval(_TURN_S)


def _load_encoders(settings: Settings) -> dict[str, Encoder]:
    # Only here: producers import this package without torch.
    from worker.encoder import load

    encoders: dict[str, Encoder] = {}
    for spec in settings.models:
        started = time.monotonic()
        chosen = tuned.applied(settings, spec)
        encoder = load(
            spec,
            device=chosen.device,
            backend=chosen.backend,
            dtype=chosen.dtype,
            batch_tokens=chosen.batch_tokens,
            threads=chosen.threads,
            min_cosine=chosen.min_cosine,
            memory_share=chosen.gpu_memory_share,
            cache=chosen.cache_dir,
        )
        encoder.warm_up()
        info = encoder.info
        logger.warning(
            "Model %s: %d dimensions, %s %s on %s, path %s, batches of %d tokens, ready in %.1f s",
            info.name,
            info.dimensions,
            info.backend,
            info.dtype,
            info.device,
            info.path,
            info.batch_tokens,
            time.monotonic() - started,
        )
        encoders[spec.name] = encoder
    return encoders
