"""Real English of known lengths, from text that is on every machine with Python.

The sources are the descriptions of installed packages and the docstrings of Python's standard
library, split into sentences. A text is a run of sentences, cut at its length. The same seed on the
same installation gives the same texts.
"""

from __future__ import annotations

import ast
import functools
import math
import random
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
#: Words, punctuation apart: prose, not code, tables or badges.
_PROSE = re.compile(r"[A-Za-z][A-Za-z0-9 ,;:'()\"\-]*[.!?]")
_FEWEST_WORDS = 4


@dataclass(frozen=True)
class Lengths:
    """Words of the texts of a set: log-normal, between bounds.

    `median` is the median in words; `spread` is the standard deviation of the logarithm. English of
    this kind has about 1.35 tokens a word, and two more for each text.
    """

    median: float
    spread: float
    fewest: int
    most: int

    def draw(self, rng: random.Random) -> int:
        words = rng.lognormvariate(math.log(self.median), self.spread)
        return round(min(max(words, self.fewest), self.most))


#: Mean tokens about 16, 46 with a tail up to the model's limit, and 200.
SETS = {
    "short": Lengths(median=9.6, spread=0.45, fewest=3, most=30),
    "mixed": Lengths(median=21, spread=1.05, fewest=3, most=300),
    "long": Lengths(median=150, spread=0.3, fewest=90, most=400),
}
#: Mean number of copies of each text in the set `repeated`, as of popular queries.
REPEATED_SHARE = 16


def texts(name: str, count: int, seed: int = 1) -> list[str]:
    """Return `count` texts of the set `name`: one of `SETS`, or `repeated`."""
    rng = random.Random(f"{name} {seed}")
    if name == "repeated":
        pool = texts("short", max(count // REPEATED_SHARE, 1), seed)
        return rng.choices(pool, k=count)
    return [_text(SETS[name].draw(rng), rng) for _ in range(count)]


def texts_of(words: int, count: int, seed: int = 1) -> list[str]:
    """Return `count` texts of exactly `words` words."""
    rng = random.Random(f"{words} {seed}")
    return [_text(words, rng) for _ in range(count)]


def _text(words: int, rng: random.Random) -> str:
    found: list[str] = []
    while len(found) < words:
        document = rng.choice(_documents())
        start = rng.randrange(len(document))
        for sentence in document[start:]:
            found += sentence.split()
            if len(found) >= words:
                break
    return " ".join(found[:words])


@functools.cache
def _documents() -> list[list[str]]:
    """Return documents as lists of sentences; the order depends only on the installed packages."""
    documents = [list(_sentences(text)) for text in (*_descriptions(), *_docstrings())]
    found = [document for document in documents if document]
    if not found:
        raise RuntimeError("no English text is installed here: neither packages nor sources")
    return found


def _sentences(text: str) -> Iterator[str]:
    for paragraph in _PARAGRAPH.split(text):
        for raw in _SENTENCE.split(" ".join(paragraph.split())):
            sentence = raw.strip().strip("*#>- ")
            if _PROSE.fullmatch(sentence) and len(sentence.split()) >= _FEWEST_WORDS:
                yield sentence


def _descriptions() -> Iterator[str]:
    """Yield the descriptions of the installed packages."""
    installed = {dist.metadata["Name"]: dist for dist in metadata.distributions()}
    for name in sorted(installed, key=str.lower):
        yield str(cast("Any", installed[name].metadata).get_payload() or "")


def _docstrings() -> Iterator[str]:
    """Yield the docstrings of the top-level modules of the standard library."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield text
