"""The engine's speed by the length of texts and by the depth of the queue.

The comparison is `encode` with equal work: one call over all texts of a length, and one call over
the texts of all jobs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from bench import models
from bench.baseline import Baseline
from bench.contestant import Own
from bench.measure import race
from bench.report import Options, Table, run
from bench.texts import texts, texts_of

#: Words of a text; English has about 1.35 tokens a word.
_WORDS = (4, 11, 22, 45, 90, 170)
#: Words of one turn, for each length.
_WORDS_A_TURN = 3_600
#: Jobs of one short text that are queued together, and the minimum number of jobs of one turn.
_DEPTHS, _JOBS_A_TURN = (1, 8, 64, 512), 64


def main(options: Options) -> list[Table]:
    with Baseline() as baseline, Own() as own:
        return [_lengths(baseline, own, options), _depths(baseline, own, options)]


def _lengths(baseline: Baseline, own: Own, options: Options) -> Table:
    model = models.encoder()
    table = Table(
        "By the length of texts, all there at once",
        [
            "tokens a text",
            "texts",
            "encode texts/s",
            "engine texts/s",
            "engine tokens/s",
            "× encode",
        ],
    )
    for words in _WORDS:
        given = texts_of(words, _WORDS_A_TURN // words // (4 if options.quick else 1))
        ran = race(
            {
                "encode": functools.partial(baseline.encode, given),
                "engine": functools.partial(own.encode, given),
            },
            options.rounds,
        )
        tokens = models.tokens_of(model, given).tokens / len(given)
        rates = [ran.rate(way, len(given)) for way in ("encode", "engine")]
        table.add(f"{tokens:.0f}", len(given), *rates, rates[1] * tokens, ran.ratio("engine"))
    return table


def _depths(baseline: Baseline, own: Own, options: Options) -> Table:
    table = Table(
        "By the depth of the queue, one short text a job",
        [
            "jobs there at once",
            "encode texts/s",
            "engine texts/s",
            "engine ms until all are done",
            "× encode",
        ],
    )
    for depth in _DEPTHS:
        turns = max(_JOBS_A_TURN // depth // (4 if options.quick else 1), 1)
        parts = [texts("short", depth, seed=turn) for turn in range(turns)]
        ran = race(
            {
                "encode": functools.partial(_sum, baseline.encode, parts),
                "engine": functools.partial(_sum, own.encode, parts),
            },
            options.rounds,
        )
        rates = [ran.rate(way, depth * turns) for way in ("encode", "engine")]
        table.add(f"{depth:,}", *rates, depth / rates[1] * 1000, ran.ratio("engine"))
    return table


def _sum(encode: Callable[[Sequence[str]], float], parts: Sequence[Sequence[str]]) -> float:
    """Return the seconds of all parts, one after another."""
    return sum(encode(part) for part in parts)


if __name__ == "__main__":
    run("growth", main)
