"""Texts past the model's limit: encoded in windows, each like the library's, and averaged."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize

from tests import tiny_models
from tests.engine.stand import Start, assert_vectors, busy, texts
from tests.fakes import NAN, POISON, FakeEncoder, RecordingSink, job_of, model_info, vector_of
from worker.contract.errors import InvalidText
from worker.contract.models import MOST_WINDOWS, ModelSpec
from worker.encoder import load
from worker.encoder.tokenizer import Tokenizer, TokenRules
from worker.encoder.tokens import TokenBlock
from worker.engine import chunks
from worker.engine.chunks import split

LIMIT = 12
SMALL = model_info(max_tokens=LIMIT, batch_tokens=24)
WORDS = [f"word{number}" for number in range(40)]
LONG = " ".join(WORDS)


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder(SMALL)


def mean_of(encoder: FakeEncoder, text: str, *, normalize: bool = True) -> np.ndarray:
    found = split(encoder, text, None)
    assert found is not None
    vectors = np.stack([vector_of(window, normalize=normalize) for window in found.texts])
    lengths = np.array([len(window.split()) for window in found.texts])
    mean = (vectors * lengths[:, None]).sum(axis=0) / lengths.sum()
    return mean / np.linalg.norm(mean) if normalize else mean


# -- splitting ----------------------------------------------------------------------------------


def test_windows_are_the_text_in_order_cut_between_words(encoder: FakeEncoder) -> None:
    found = split(encoder, f"  {LONG}\n", None)
    assert found is not None
    assert " ".join(found.texts).split() == WORDS
    assert not found.cut
    assert all(LIMIT // 2 <= len(window.split()) <= LIMIT for window in found.texts[:-1])


def test_windows_leave_room_for_the_prompt(encoder: FakeEncoder) -> None:
    found = split(encoder, LONG, "search for the following:")
    assert found is not None
    assert all(len(window.split()) <= LIMIT - 4 for window in found.texts)
    assert found.block.lengths.max() <= LIMIT
    assert not found.cut


def test_a_prompt_that_fills_the_limit_leaves_nothing_to_split(encoder: FakeEncoder) -> None:
    assert split(encoder, LONG, "word " * LIMIT) is None


def test_a_text_of_blanks_is_not_split(encoder: FakeEncoder) -> None:
    assert split(encoder, " " * 10_000, None) is None


def test_what_is_past_the_last_window_is_cut(encoder: FakeEncoder) -> None:
    found = split(encoder, "word " * (LIMIT * MOST_WINDOWS * 2), None)
    assert found is not None
    assert len(found.texts) == MOST_WINDOWS
    assert found.cut


def test_a_word_without_end_is_cut_where_it_must(tmp_path: Path) -> None:
    encoder = load(ModelSpec("tiny", str(tiny_models.roberta(tmp_path))), device="cpu")
    word = "".join(chr(0x4E00 + number % 500) for number in range(700))
    found = split(encoder, word, None)
    assert found is not None
    assert "".join(found.texts) == word
    assert not found.block.truncated.any()


def test_parts_that_have_more_tokens_together_make_more_windows(
    encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "_packed", lambda parts, *_: [list(parts)])
    found = split(encoder, LONG, None)
    assert found is not None
    assert " ".join(found.texts).split() == WORDS
    assert not found.block.truncated.any()


#: Pieces of hostile texts: blanks of all kinds, words without end, characters of many tokens.
PIECES = [
    *(" ", "\n\t", "\u2003", "\x1c", " " * 500, "\u3000" * 70, "\u200b" * 40),
    *("a", "word", "x" * 300, "日", "🙂" * 50, "é" * 120, "\ufdfa" * 9, "-" * 200),
]


class _Counting:
    """An encoder that counts the characters that it tokenizes."""

    def __init__(self, tokenizer: Tokenizer, limit: int) -> None:
        self.info = model_info(max_tokens=limit)
        self._tokenizer = tokenizer
        self.characters = 0

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> TokenBlock:
        self.characters += sum(map(len, texts))
        return self._tokenizer(texts, prompt)


def counting(limit: int) -> list[_Counting]:
    kinds = [tiny_models.wordpiece(), tiny_models.byte_level("qwen")]
    return [
        _Counting(Tokenizer(kind.backend_tokenizer, TokenRules(limit=limit)), limit)
        for kind in kinds
    ]


@pytest.mark.parametrize("seed", range(20))
def test_windows_of_any_text_are_within_the_limit_and_lack_nothing(seed: int) -> None:
    dice = random.Random(seed)
    limit = dice.choice([8, 20, 64])
    for encoder in counting(limit):
        text = "".join(dice.choices(PIECES, k=dice.randrange(1, 60)))
        found = split(encoder, text, dice.choice([None, "the job "]))
        if found is None:
            assert not text.strip()
            continue
        assert all(window and window == window.strip() for window in found.texts)
        assert found.block.lengths.max() <= limit
        kept = "".join("".join(found.texts).split())
        whole = "".join(text.split())
        assert whole.startswith(kept) if found.cut else whole == kept


def seconds_of(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


@pytest.mark.parametrize(
    "shape",
    [
        *("a b" + " " * 9, "\u2003" * 9, "x" * 9, "🙂" * 9, " x", "word ", "\n" * 8 + "x"),
        *("a" + " " * 8, "日本 ", "-" * 9),
    ],
)
def test_the_work_is_in_proportion_to_the_text(shape: str) -> None:
    def parts_of(characters: int) -> float:
        text = (shape[:3] + shape[3:] * characters)[:characters]
        return seconds_of(lambda: deque(chunks._parts(text, 1024), maxlen=0))

    # Quadratic work would take 256 times as long.
    assert parts_of(2**22) < 100 * max(parts_of(2**18), 0.002)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["x", "🙂", "word ", "a" + " " * 300, " ", "\u2003", "é\u0301"])
def test_a_text_of_all_windows_of_a_large_model_is_tokenised_a_few_times(shape: str) -> None:
    limit = 8192
    text = (shape * (MOST_WINDOWS * limit * 8 // len(shape)))[: MOST_WINDOWS * limit]
    for encoder in counting(limit):
        # A word of a million characters is refused.
        with suppress(InvalidText):
            split(encoder, text, "the job ")
        # Once in parts, once as windows, and again if windows are too long.
        assert encoder.characters < 5 * len(text)


# -- the engine ---------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_a_long_text_gets_the_mean_of_its_windows(
    normalize: bool, start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    given = ["short", LONG, "another", LONG.upper()]
    options = {"long": "mean", "normalize": normalize, "token_counts": True}
    start(encoder).submit(job_of(given, info=SMALL, **options))
    outcome = sink.outcome("job")
    assert_vectors(outcome.vectors[::2], given[::2], normalize=normalize)
    for row in (1, 3):
        expected = mean_of(encoder, given[row], normalize=normalize)
        np.testing.assert_allclose(outcome.vectors[row], expected, rtol=1e-5, atol=1e-6)
    assert outcome.token_counts == [1, 40, 1, 40]
    assert outcome.prompt_tokens == 82
    assert not outcome.truncated
    assert not outcome.errors


def test_by_default_a_long_text_is_cut(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    start(encoder).submit(job_of([LONG], info=SMALL))
    outcome = sink.outcome("job")
    assert_vectors(outcome.vectors, [" ".join(WORDS[:LIMIT])])
    assert outcome.truncated == [0]


def test_a_text_past_the_last_window_is_told_or_refused(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    endless = "word " * (LIMIT * MOST_WINDOWS * 2)
    engine.submit(job_of([endless], "cut", info=SMALL, long="mean"))
    engine.submit(job_of([endless, LONG], "strict", info=SMALL, long="mean", truncate=False))
    assert sink.outcome("cut").truncated == [0]
    strict = sink.outcome("strict")
    assert [(error.index, error.code) for error in strict.errors] == [(0, "text_too_long")]
    assert "128 windows of 12 tokens" in strict.errors[0].message
    assert not strict.truncated
    np.testing.assert_allclose(strict.vectors[1], mean_of(encoder, LONG), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("word", "code"), [(POISON, "encode_failed"), (NAN, "non_finite_vector")])
def test_a_bad_window_fails_its_text_once_and_no_other(
    word: str, code: str, start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    bad = " ".join([word, *WORDS, word])
    job = job_of([LONG, bad, "short"], info=SMALL, long="mean")
    start(encoder).submit(job)
    outcome = sink.outcome("job")
    assert [(error.index, error.code) for error in outcome.errors] == [(1, code)]
    assert not outcome.vectors[1].any()
    assert_vectors(outcome.vectors[2:], ["short"])
    np.testing.assert_allclose(outcome.vectors[0], mean_of(encoder, LONG), rtol=1e-5, atol=1e-6)


def test_a_job_of_nothing_but_a_bad_long_text_fails(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    start(encoder).submit(job_of([f"{LONG} {POISON}"], info=SMALL, long="mean"))
    assert sink.failure("job").code == "encode_failed"


def test_windows_share_batches_with_other_texts_within_the_budget(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    with busy(engine, encoder):
        engine.submit(job_of([LONG * 8], "long", info=SMALL, long="mean"))
        engine.submit(job_of(["small"], "small", info=SMALL))
    sink.outcome("long")
    sizes = [sum(len(text.split()) for text in batch) for batch in encoder.batches]
    assert max(sizes) <= SMALL.batch_tokens
    assert any("small" in batch for batch in encoder.batches[:4])
    assert engine.waiting_tokens == 0


def test_a_long_text_that_was_cancelled_leaves_nothing_behind(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    job = job_of([LONG] * 40, "gone", info=SMALL, long="mean")
    with busy(engine, encoder):
        engine.submit(job)
        assert engine.cancel(job)
    engine.submit(job_of(texts(2), "next", info=SMALL))
    sink.outcome("next")
    assert engine.waiting_tokens == 0
    assert sink.of("completed") == ["busy", "next"]


# -- the library --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "after"),
    [
        (tiny_models.bert, (Normalize(),)),
        (tiny_models.roberta, ()),
        (tiny_models.qwen3, (Normalize(),)),
    ],
)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("prompt", [None, "the vector of "])
def test_the_mean_is_that_of_what_the_library_gives_for_each_window(
    make: Callable[..., Path],
    after: tuple[torch.nn.Module, ...],
    normalize: bool,
    prompt: str | None,
    start: Start,
    sink: RecordingSink,
    tmp_path: Path,
) -> None:
    path = make(tmp_path, after=after)
    encoder = load(ModelSpec("tiny", str(path)), device="cpu")
    library = SentenceTransformer(str(path), device="cpu", local_files_only=True)
    numbers = np.random.default_rng(7)
    text = " ".join(numbers.choice(tiny_models.WORDS, 333))
    job = job_of(
        [text, "the queue"],
        info=encoder.info,
        prompt=prompt,
        long="mean",
        normalize=normalize,
    )
    start(encoder).submit(job)
    found = split(encoder, text, prompt)
    assert found is not None
    assert len(found.texts) > 2
    vectors = np.concatenate(
        [
            library.encode([window], prompt=prompt, normalize_embeddings=normalize)
            for window in found.texts
        ]
    )
    prompted = [(prompt or "") + window for window in found.texts]
    weights = np.array([len(ids) for ids in library.tokenizer(prompted)["input_ids"]])
    assert weights.max() <= encoder.info.max_tokens
    mean = (vectors * weights[:, None]).sum(axis=0) / weights.sum()
    if normalize or after:
        mean /= np.linalg.norm(mean)
    np.testing.assert_allclose(sink.outcome("job").vectors[0], mean, atol=1e-5, rtol=0)
