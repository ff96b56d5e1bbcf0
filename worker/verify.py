"""Verification that this machine's vectors equal the library's in batches of every shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.contract.models import ModelInfo, ModelSpec
from worker.encoder import Encoder, load
from worker.encoder.compare import TOLERANCE, cosines, repeat_words
from worker.encoder.tokens import TokenBlock

#: Smallest cosine of any text in the other number formats; int8 is inaccurate for rare characters.
MIN_COSINE = {"bfloat16": 0.999, "float16": 0.999, "int8": 0.9}
#: The longest text to compare, in words: attention over much longer texts takes minutes.
_LONGEST_TRIED = 1024

_SENTENCE = (
    *("Jobs", "wait", "in", "a", "queue", "until", "the", "device", "is", "free,"),
    *("and", "then", "share", "one", "batch", "with", "texts", "of", "any", "length."),
)


@dataclass(frozen=True, slots=True)
class Case:
    """Texts of one kind, each tokenized after `prompt` (None: the model's default)."""

    kind: str
    texts: tuple[str, ...]
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The result of one case: the largest difference of an element in each shape of batch."""

    kind: str
    texts: int
    alone: float
    together: float
    shuffled: float
    min_cosine: float
    passed: bool


def verify(
    spec: ModelSpec, *, device: str = "auto", **options: Any
) -> tuple[ModelInfo, list[CaseResult]]:
    """Compare a model's vectors, in batches of every shape, with the library's of each text alone.

    Loads the model twice: with `options` as a worker does, and through `SentenceTransformer` in
    float32. `options` and errors: see `worker.encoder.load`.
    """
    from worker.encoder.reference import Reference

    encoder = load(spec, device=device, **options)
    reference = Reference(spec, device=device)
    cases = built_in_cases(encoder.info)
    expected = np.concatenate([reference.encode_alone(case.texts, case.prompt) for case in cases])
    blocks = [encoder.tokenize(case.texts, case.prompt) for case in cases]
    shapes = _in_every_shape(encoder, TokenBlock.join(blocks))
    return encoder.info, _rows(cases, expected, shapes, MIN_COSINE.get(encoder.info.dtype))


def built_in_cases(info: ModelInfo) -> list[Case]:
    """Texts to compare: short and long, rare and common characters, repeated, with prompts."""
    words = min(info.max_tokens, _LONGEST_TRIED)
    sentences = tuple(" ".join(_SENTENCE[:count]) for count in (3, 20, 7, 12, 5, 16))
    cases = [
        Case("empty and blank", ("", " ", "\n\t  \n")),
        Case("one word", ("queue", "Queue", "a", "?")),
        Case("sentences", sentences),
        Case(
            "accents, emoji, signs", ("Žluťoučký kůň", "naïve café", "🙂 👩‍👩‍👧 🇨🇿", "x² ≤ ∞ · µ")
        ),
        Case("other scripts", ("東京都に住んでいます", "안녕하세요", "Привет, мир", "नमस्ते")),
        Case("right to left", ("שלום עולם", "مرحبا بالعالم", "mixed שלום text")),
        Case("control characters", ("a\x00b", "tab\tand\r\nline", "\u200bzero\u200bwidth")),
        Case("about the limit", tuple(_of_words(words + more) for more in (-3, -2, -1, 0, 1))),
        Case("no spaces", ("x" * 99, "x" * 5000, "0123456789" * 40)),
        Case("repeated", (sentences[0],) * 5),
        Case("with a prompt", sentences, "query: "),
        Case("without any prompt", sentences, ""),
    ]
    if info.max_tokens <= _LONGEST_TRIED:
        cases.append(Case("beyond the limit", (_of_words(words * 3), _of_words(words * 40))))
    cases += [
        Case(f"prompt {name!r}", sentences, prompt)
        for name, prompt in info.prompts.items()
        if prompt
    ]
    return cases


def table(info: ModelInfo, rows: list[CaseResult]) -> str:
    """Format the rows as text, one line each, between a description and the verdict."""
    lines = [
        f"{info.name} on {info.device}, {info.backend} {info.dtype}, path {info.path}, "
        f"{info.dimensions} dimensions, up to {info.max_tokens} tokens",
        "largest difference to SentenceTransformer.encode of each text alone:",
        "",
        f"{'texts':<24}{'':>4}{'alone':>10}{'together':>10}{'shuffled':>10}{'cosine ≥':>11}",
    ]
    lines += [
        f"{row.kind:<24}{row.texts:>4}{row.alone:>10.1e}{row.together:>10.1e}"
        f"{row.shuffled:>10.1e}{row.min_cosine:>11.7f}  {'ok' if row.passed else 'DIFFERS'}"
        for row in rows
    ]
    failed = sum(not row.passed for row in rows)
    verdict = f"{failed} of {len(rows)} differ" if failed else "all agree"
    return "\n".join([*lines, "", verdict, ""])


def _in_every_shape(encoder: Encoder, block: TokenBlock) -> dict[str, NDArray[np.float32]]:
    """Vectors of the texts of `block`, in its order, from batches of three shapes."""
    count = len(block)
    singles = [block.slice(index, index + 1) for index in range(count)]
    order = np.random.default_rng(1).permutation(count)
    shuffled = np.empty((count, encoder.info.dimensions), dtype=np.float32)
    for start in range(0, count, 13):
        some = order[start : start + 13]
        shuffled[some] = encoder.forward(TokenBlock.join([singles[index] for index in some]))
    return {
        "alone": np.concatenate([encoder.forward(single) for single in singles]),
        "together": encoder.forward(block),
        "shuffled": shuffled,
    }


def _rows(
    cases: list[Case],
    expected: NDArray[np.float32],
    shapes: dict[str, NDArray[np.float32]],
    min_cosine: float | None,
) -> list[CaseResult]:
    rows, start = [], 0
    for case in cases:
        part = slice(start, start := start + len(case.texts))
        gaps = {name: _gap(found[part], expected[part]) for name, found in shapes.items()}
        found = [cosines(vectors[part], expected[part]).min() for vectors in shapes.values()]
        cosine = float(min(found))
        passed = max(gaps.values()) <= TOLERANCE if min_cosine is None else cosine >= min_cosine
        rows.append(
            CaseResult(case.kind, len(case.texts), **gaps, min_cosine=cosine, passed=bool(passed))
        )
    return rows


def _gap(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference of an element, relative to vectors longer than one; NaN is inf."""
    scale = np.maximum(1.0, np.linalg.norm(expected, axis=1, keepdims=True))
    gap = float((np.abs(found - expected) / scale).max())
    return gap if np.isfinite(gap) else float("inf")


def _of_words(count: int) -> str:
    return repeat_words(_SENTENCE, count)
