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
#: New objects between two looks for garbage: some hundred jobs' worth.
_COLLECTED_OBJECTS = 50_000
#: Seconds for which a thread may keep the interpreter while others want it.
_TURN_S = 1e-4


def load_encoders(settings: Settings) -> dict[str, Encoder]:
    """Every served model by its name, the default first.

    Raises ModelUnavailable, DeviceUnavailable or DeviceMemoryError.
    """
    return on_passing_thread(lambda: _load_encoders(settings))


def on_passing_thread(call: Callable[[], T]) -> T:
    """What `call` gives or raises, run on a thread that has ended when this returns.

    OpenMP, which torch computes with on a CPU, keeps a team of threads for every thread that ever
    ran a forward pass. Once all teams together have more threads than there are cores, they go to
    sleep between any two kernels instead of spinning: measured a quarter slower. A thread that
    ends takes its team along, so that those of the slots are the only ones.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
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

    Raises what a forward pass raised.
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
    """Spare the collector what lives as long as the process: the models and libraries.

    What jobs leave behind is freed by reference counts, so it need not look often either.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_OBJECTS)


def shorten_turns() -> None:
    """Let the threads of this process have the interpreter in turns of 0.1 ms instead of 5.

    A forward pass comes back to the interpreter after each of its operations. Each time it waits
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
