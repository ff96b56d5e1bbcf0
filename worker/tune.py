"""Find the fastest backend, number format, threads and token budget for a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.contract.backends import backends
from worker.contract.errors import EmbedqError
from worker.contract.models import ModelSpec
from worker.encoder import Encoder, load
from worker.encoder.tokens import TokenBlock
from worker.loading import batches_of, on_passing_thread, run_in_slots
from worker.tuned import Tuned, cores

#: Receives the current trial and the finished share of the whole.
Progress = Callable[[str, float], None]

#: Token budgets to try, as multiples of the backend's default.
_BUDGETS = (0.5, 1.0, 2.0, 4.0)
#: A larger budget must be faster by this factor: it adds latency to all jobs in its batches.
_WORTH_IT = 1.03
#: Seconds that a batch may take.
_LONGEST_BATCH_S = 1.0
#: The least number of texts to encode, and the number of texts to compare with the library.
_TEXTS, _COMPARED = 384, 24
#: The texts fill at least this many batches of the largest budget: with one, all larger budgets
#: would measure the same batch.
_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one way to run the model; `objection` is the reason if it did not run."""

    backend: str
    dtype: str
    threads: int | None
    batch_tokens: int = 0
    texts_per_second: float = 0.0
    #: Largest difference of an element to the library's float32 vectors, and the mean cosine.
    difference: float = 0.0
    cosine: float = 0.0
    objection: str = ""


def tune(
    spec: ModelSpec,
    *,
    device: str = "auto",
    allow: Sequence[str] = (),
    seconds: float = 120.0,
    min_cosine: float = 0.99,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> list[Finding]:
    """Measure every way to run `spec`, the best first.

    On a CPU in float32 and the formats in `allow`; on another device through torch. Takes about
    `seconds`, without loading; `progress` gets the current trial and the finished share.
    Raises the errors of `worker.encoder.load` if the default way does not run.
    """
    reference = on_passing_thread(lambda: _Reference(spec, device))
    ways = _ways(reference.on_cpu, allow)
    findings = []
    for number, (backend, dtype, threads) in enumerate(ways):
        way = Finding(backend, dtype, threads)
        opened = partial(
            load,
            spec,
            device=device,
            backend=backend,
            dtype=dtype,
            threads=threads,
            min_cosine=min_cosine,
            cache=cache,
        )
        advance = partial(_advance, progress, way, number, len(ways))
        advance(0.0)
        try:
            findings.append(
                on_passing_thread(
                    partial(_measured, opened, way, reference, seconds / len(ways), advance)
                )
            )
        except EmbedqError as error:
            if number == 0:
                raise
            findings.append(replace(way, objection=error.message))
        advance(1.0)
    return sorted(findings, key=lambda finding: -finding.texts_per_second)


def best(findings: Sequence[Finding]) -> Tuned:
    """The settings of the fastest way that ran. At least one did."""
    fastest = max(findings, key=lambda finding: finding.texts_per_second)
    return Tuned(fastest.backend, fastest.dtype, fastest.threads, fastest.batch_tokens)


def smallest_worthwhile(rates: dict[int, float]) -> int:
    """The smallest worthwhile token budget, from texts a second by budget."""
    chosen = min(rates)
    for budget in sorted(rates):
        if rates[budget] > rates[chosen] * _WORTH_IT:
            chosen = budget
    return chosen


def table(findings: Sequence[Finding]) -> str:
    """The findings as text, one line each."""
    head = f"{'backend':<10}{'dtype':<10}{'threads':>8}{'tokens':>8}{'texts/s':>9}"
    lines = [f"{head}{'difference':>12}{'cosine':>10}"]
    for found in findings:
        way = f"{found.backend:<10}{found.dtype:<10}{found.threads or 'auto':>8}"
        lines.append(
            f"{way}  {found.objection}"
            if found.objection
            else f"{way}{found.batch_tokens:>8}{found.texts_per_second:>9.0f}"
            f"{found.difference:>12.1e}{found.cosine:>10.5f}"
        )
    return "\n".join(lines)


class _Reference:
    """The library's vectors of the first texts, and the source of the texts."""

    def __init__(self, spec: ModelSpec, device: str) -> None:
        # Only here: it imports torch.
        from worker.encoder.english import english
        from worker.encoder.reference import Reference

        library = Reference(spec, device=device)
        self.english = english
        self.vectors: NDArray[np.float32] = library.encode_alone(english(_COMPARED))
        self.on_cpu = library.device == "cpu"


def _ways(on_cpu: bool, allow: Sequence[str]) -> list[tuple[str, str, int | None]]:
    """Backend, number format and threads, the default first."""
    installed = [
        backend
        for backend in backends().values()
        if not backend.missing() and (on_cpu or not backend.cpu_only)
    ]
    # Two threads of one core, which some machines count as two cores, can slow each other down.
    threads = [None, cores() // 2] if on_cpu and cores() >= 4 else [None]
    return [
        (backend.name, dtype, count)
        for dtype in ("float32" if on_cpu else "auto", *allow)
        for backend in installed
        if dtype in ("auto", *backend.dtypes)
        for count in threads
    ]


def _advance(progress: Progress, way: Finding, number: int, ways: int, share: float) -> None:
    progress(f"{way.backend} {way.dtype}", (number + share) / ways)


def _measured(
    opened: Callable[[], Encoder],
    way: Finding,
    reference: _Reference,
    seconds: float,
    advance: Callable[[float], None],
) -> Finding:
    """Measure `way`."""
    encoder = opened()
    encoder.warm_up()
    budgets = sorted({max(int(encoder.info.batch_tokens * factor), 1) for factor in _BUDGETS})
    block = _block(encoder, reference.english, _BATCHES * budgets[-1])
    found = encoder.forward(block.slice(0, _COMPARED))
    rates: dict[int, float] = {}
    for number, budget in enumerate(budgets, start=1):
        rate, batch_seconds = _rate(encoder, block, budget, seconds / len(budgets))
        if not rates or batch_seconds <= _LONGEST_BATCH_S:
            rates[budget] = rate
        advance(number / len(budgets))
    budget = smallest_worthwhile(rates)
    dtype = encoder.info.dtype
    encoder.close()
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(reference.vectors, axis=1)
    return Finding(
        way.backend,
        dtype,
        way.threads,
        budget,
        rates[budget],
        float(np.abs(found - reference.vectors).max()),
        float(((found * reference.vectors).sum(axis=1) / np.maximum(norms, 1e-30)).mean()),
    )


def _block(encoder: Encoder, texts: Callable[[int], list[str]], tokens: int) -> TokenBlock:
    """A block of different texts with at least `tokens` tokens."""
    block = encoder.tokenize(texts(_TEXTS))
    times = -(-tokens // block.tokens)
    return block if times == 1 else encoder.tokenize(texts(_TEXTS * times))


def _rate(encoder: Encoder, block: TokenBlock, budget: int, seconds: float) -> tuple[float, float]:
    """Texts a second in batches of `budget` tokens in arrival order, and the longest batch's time.

    All slots of the device run. As many whole rounds over `block` as fit into `seconds` are run;
    the best one counts. If even one does not fit, a part of it, at least one batch, counts by its
    share of the tokens.
    """
    until = time.monotonic() + seconds
    fastest = longest = 0.0
    while True:
        began = time.perf_counter()
        found = run_in_slots(encoder, _until(batches_of(block, budget), until))
        took = time.perf_counter() - began
        share = sum(batch.tokens for batch, _, _ in found) / block.tokens
        longest = max(longest, *(seconds for _, _, seconds in found))
        fastest = max(fastest, len(block) * share / took)
        if time.monotonic() + took > until:
            return fastest, longest


def _until(batches: Iterator[TokenBlock], until: float) -> Iterator[TokenBlock]:
    """The first batch, and others until a monotonic time."""
    for number, batch in enumerate(batches):
        if number and time.monotonic() > until:
            return
        yield batch
