"""Tokens equal the library's, with its truncation; a huge text costs no more than a cut one."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast

from tests import tiny_models
from worker.contract.errors import InvalidText
from worker.encoder.tokenizer import Tokenizer, TokenRules
from worker.encoder.tokens import TokenBlock

LIMIT = tiny_models.MAX_TOKENS
WORDS = "the queue holds texts until one batch is full of them "

tokenizers = pytest.mark.parametrize(
    "make",
    [
        tiny_models.wordpiece,
        lambda: tiny_models.byte_level("roberta"),
        lambda: tiny_models.byte_level("qwen"),
    ],
    ids=["wordpiece", "byte-level", "byte-level, end only"],
)


def ours(library: PreTrainedTokenizerFast, **rules: object) -> Tokenizer:
    return Tokenizer(
        library.backend_tokenizer,
        TokenRules(limit=LIMIT, truncation_side=library.truncation_side, **rules),  # type: ignore[arg-type]
    )


def rows(block: TokenBlock) -> list[list[int]]:
    return [block.ids[start:stop].tolist() for start, stop in pairwise(block.offsets)]


@tokenizers
@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_and_cuts_are_the_librarys(
    make: Callable[[], PreTrainedTokenizerFast], side: str
) -> None:
    library = make()
    library.truncation_side = side
    texts = [
        *("", " ", "the", "unknown zebra!", "日本語 🙂", WORDS),
        *(WORDS * count for count in (5, 6, 7, 40, 400, 4000)),
        *("job" * 2000, "x" * 90, "x" * 30_000, "日" * 30_000, " " * 30_000, "a b" + " " * 30_000),
        *("é" * 5000 + " the queue", "x" * 5000 + " the queue", " " * 5000 + "the queue"),
        "".join(f"job{count} " for count in range(9000)),
    ]
    whole = library(texts, truncation=False)["input_ids"]
    want = library(texts, truncation=True, max_length=LIMIT)["input_ids"]
    block = ours(library)(texts)
    assert rows(block) == want
    assert block.truncated.tolist() == [len(row) > LIMIT for row in whole]
    assert block.ids.dtype == np.int32
    assert block.offsets.dtype == np.int64


@pytest.mark.parametrize(
    "text", [WORDS * 200_000, "x" * 10_000_000, "\n" * 10_000_000, "ab " * 3_000_000]
)
@tokenizers
def test_ten_megabytes_cost_no_more_than_a_cut_text(
    make: Callable[[], PreTrainedTokenizerFast], text: str
) -> None:
    tokenize = ours(make())
    began = time.process_time()
    block = tokenize([text])
    took = time.process_time() - began
    assert block.tokens <= LIMIT
    # Tokenizing all of it takes several seconds.
    assert took < 1.0


def test_a_prompt_stands_before_each_text_and_is_counted_when_it_is_not_pooled() -> None:
    library = tiny_models.wordpiece()
    special = frozenset(library.all_special_ids)
    block = ours(library, pool_prompt=False, special_ids=special)(["queue", ""], "the job ")
    assert rows(block) == library(["the job queue", "the job "])["input_ids"]
    # [CLS] the job
    assert block.skip.tolist() == [3, 3]
    assert ours(library)(["queue"], "the job ").skip.tolist() == [0]


def test_no_prompt_takes_the_default_and_an_empty_one_takes_none() -> None:
    library = tiny_models.wordpiece()
    tokenize = ours(library, default_prompt="the job ")
    assert rows(tokenize(["queue"])) == library(["the job queue"])["input_ids"]
    assert rows(tokenize(["queue"], "")) == library(["queue"])["input_ids"]
    assert rows(tokenize(["queue"], "one ")) == library(["one queue"])["input_ids"]


#: Pieces of texts and prompts; a tokenizer reads some of them for long without a token.
PIECES = [
    *(
        "the ",
        "job",
        " ",
        "\n",
        "  " * 400,
        "x" * 700,
        "zebra ",
        "日本",
        "é" * 300,
        "🙂",
        "queue. ",
    ),
    *("\u2003", "\t", "-" * 90, "e\u0301", "a b ", "\u200b" * 30, "prompt"),
]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("side", ["right", "left"])
@tokenizers
def test_any_text_after_any_prompt_has_the_librarys_tokens(
    make: Callable[[], PreTrainedTokenizerFast], side: str, seed: int
) -> None:
    library = make()
    library.truncation_side = side
    dice = random.Random(seed)

    def any_text(most: int) -> str:
        return "".join(dice.choices(PIECES, k=dice.randrange(most)))

    for _ in range(4):
        prompt = any_text(dice.choice([2, 10, 60]))
        texts = [any_text(dice.choice([2, 10, 100])) for _ in range(dice.randrange(1, 9))]
        want = library([prompt + text for text in texts], truncation=True, max_length=LIMIT)
        block = ours(library)(texts, prompt)
        assert rows(block) == want["input_ids"]
        whole = library([prompt + text for text in texts], truncation=False)["input_ids"]
        assert block.truncated.tolist() == [len(row) > LIMIT for row in whole]


@tokenizers
def test_texts_of_several_calls_are_in_order(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    library = make()
    texts = [f"job{count} " + WORDS * (count % 40) for count in range(900)]
    want = library(texts, truncation=True, max_length=LIMIT)["input_ids"]
    assert sum(map(len, texts)) > 2 * 2**18
    assert rows(ours(library)(texts)) == want


#: A process that tokenizes texts of so many characters after a prompt of a million, and prints the
#: growth of its memory in bytes.
GREEDY = """
import resource, sys
from tests.tiny_models import byte_level, wordpiece
from worker.contract.errors import InvalidText
from worker.encoder.tokenizer import Tokenizer, TokenRules

kind, limit, side, text, prompt, count, long = sys.argv[1:]
library = {"wordpiece": wordpiece, "bytes": lambda: byte_level("qwen")}[kind]()
limits = {"limit": int(limit) or None, "pool_prompt": False}
tokenize = Tokenizer(library.backend_tokenizer, TokenRules(**limits, truncation_side=side))
tokenize(["warm"], "up")
texts, prompt = [text * int(long)] * int(count), prompt * 2**20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    tokenize(texts, prompt)
except InvalidText:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        ("wordpiece", 64, "right", "a", "p ", 256, 1),
        ("wordpiece", 64, "left", "a ", "\u2603", 256, 2**15),
        ("bytes", 8192, "right", "\N{GRINNING FACE}", "p", 256, 2**16),
        ("wordpiece", 8192, "right", "\u00e9", "\u00e9", 4, 2**22),
        ("wordpiece", 0, "right", "!", "", 16, 2**18),
    ],
)
def test_memory_of_a_call_is_bounded_whatever_texts_and_prompt_are(how: tuple[object, ...]) -> None:
    program = [sys.executable, "-c", GREEDY, *map(str, how)]
    done = subprocess.run(program, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 512 * 2**20


def test_a_long_prompt_is_not_cached() -> None:
    tokenize = ours(tiny_models.wordpiece(), pool_prompt=False)
    for prompt in ("the job " * 100, "the job " * 500):
        assert [tokenize(["a"], prompt).skip[0] for _ in range(2)] == [LIMIT, LIMIT]
    assert tokenize._cached_prompt_tokens.cache_info().currsize == 1


@pytest.mark.parametrize("limit", [None, LIMIT])
def test_a_text_that_is_too_long_to_be_read_is_refused_with_its_bound(limit: int | None) -> None:
    rust = tiny_models.wordpiece().backend_tokenizer
    tokenize = Tokenizer(rust, TokenRules(limit=limit))
    with pytest.raises(InvalidText, match="524,288 characters"):
        tokenize(["é" * 600_000])


@pytest.mark.parametrize(
    "text", ["\ud800", "fine until \udfff", 7, None, b"bytes", ["a"], ("a", "b")]
)
def test_a_text_that_cannot_be_tokenised_raises_an_ordinary_exception(text: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        ours(tiny_models.wordpiece())(["fine", text])  # type: ignore[list-item]


def test_a_panic_of_the_tokenizer_is_an_ordinary_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    def panic(*_: object, **__: object) -> None:
        raise PanicException

    tokenize = ours(tiny_models.wordpiece())
    monkeypatch.setattr(RustTokenizer, "encode_batch_fast", panic, raising=True)
    with pytest.raises(ValueError, match="cannot take"):
        tokenize(["fine"])


def test_a_text_without_tokens_is_refused_unless_the_model_takes_it() -> None:
    rust = tiny_models.wordpiece().backend_tokenizer
    rules = {"limit": LIMIT, "add_special_tokens": False}
    with pytest.raises(ValueError, match="without tokens"):
        Tokenizer(rust, TokenRules(**rules))(["the", ""])
    block = Tokenizer(rust, TokenRules(**rules, accepts_empty=True))(["the", ""])
    assert block.lengths.tolist() == [1, 0]


def test_no_texts_are_no_tokens() -> None:
    block = ours(tiny_models.wordpiece())([])
    assert (len(block), block.tokens) == (0, 0)


def test_the_models_own_tokenizer_is_left_as_it_was() -> None:
    library = tiny_models.wordpiece()
    library.backend_tokenizer.enable_truncation(7)
    ours(library)([WORDS * 9])
    assert library.backend_tokenizer.truncation["max_length"] == 7
