"""English texts of all lengths from Python's own docstrings, for calibration and measurement."""

from __future__ import annotations

import builtins

#: Numbers of words of the texts, in turn.
_WORDS = (3, 8, 12, 20, 40, 120)


def english(count: int) -> list[str]:
    """`count` texts of 3 to 120 words, the same on every machine with the same Python."""
    named = sorted(vars(builtins).items())
    words = [word for _, thing in named for word in (getattr(thing, "__doc__", "") or "").split()]
    texts, at = [], 0
    for number in range(count):
        length = _WORDS[number % len(_WORDS)]
        texts.append(" ".join(words[at : at + length]))
        at = (at + length) % max(len(words) - max(_WORDS), 1)
    return texts
