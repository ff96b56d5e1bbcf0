"""The machine's limit for float32 matrix products, and the engine's share of it.

The limit is the best rate of products in the shapes of the model's layers over a full batch. The
model's arithmetic is that of its linear layers, from its configuration, without attention.
"""

from __future__ import annotations

import functools
import statistics
import time

import torch
from transformers import PretrainedConfig

from bench import models
from bench.baseline import Baseline
from bench.measure import race
from bench.report import Options, Table, run
from bench.texts import texts
from worker.loading import on_passing_thread

_BATCH = 1536
_SECONDS_A_SHAPE = 0.3


def main(options: Options) -> list[Table]:
    baseline, model = Baseline(), models.encoder()
    config = models.configuration(models.spec())
    flops = models.flops_a_token(config)
    limits: list[float] = []
    table = Table(
        "Share of the machine's float32 limit",
        ["texts", "limit texts/s", "engine texts/s", "engine share %", "encode share %"],
    )
    engine = models.RawEngine(model)
    try:
        for name, count in (("short", 512), ("mixed", 256)):
            given = texts(name, count // (4 if options.quick else 1))
            tokens = model.tokenize(given).tokens
            ran = race(
                {
                    "encode": functools.partial(baseline.encode, given),
                    "engine": functools.partial(engine.encode, given),
                    "limit": lambda: limits.append(
                        on_passing_thread(functools.partial(_limit, config))
                    ),
                },
                options.rounds,
            )
            limit = statistics.median(limits)
            most = limit / flops / tokens * len(given)
            rate, encode = ran.rate("engine", len(given)), ran.rate("encode", len(given))
            table.add(name, most, rate, rate / most * 100, encode / most * 100)
    finally:
        engine.close()
        baseline.close()
    table.notes.append(
        f"limit {statistics.median(limits) / 1e9:.0f} GFLOP/s with {torch.get_num_threads()} "
        f"threads; {flops / 1e6:.1f} MFLOP a token"
    )
    return [table]


def _limit(config: PretrainedConfig) -> float:
    """Return the operations a second of the best of the model's shapes and a large square one."""
    hidden, inner = config.hidden_size, config.intermediate_size
    best = 0.0
    with torch.inference_mode():
        for rows, depth, columns in (
            (_BATCH, hidden, hidden),
            (_BATCH, hidden, inner),
            (_BATCH, inner, hidden),
            (2048, 2048, 2048),
        ):
            left, right = torch.randn(rows, depth), torch.randn(depth, columns)
            times = []
            until = time.perf_counter() + _SECONDS_A_SHAPE
            while (began := time.perf_counter()) < until:
                torch.mm(left, right)
                times.append(time.perf_counter() - began)
            best = max(best, 2.0 * rows * depth * columns / statistics.median(times))
    return best


if __name__ == "__main__":
    run("gemm", main)
