"""Find the items that make a call fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def bisect(
    items: Sequence[T], call: Callable[[Sequence[T]], R]
) -> Iterator[tuple[int, Sequence[T], R]]:
    """Call with all items; if it returns an exception, with each half, down to single items.

    Yields the index of the first item, the items and the answer, in order, so that only the answers
    of single items are exceptions. One item of n that fails costs about 2 log2(n) further calls.
    """
    parts = [(0, items)] if items else []
    while parts:
        start, part = parts.pop()
        answer = call(part)
        if isinstance(answer, Exception) and len(part) > 1:
            middle = len(part) // 2
            parts += [(start + middle, part[middle:]), (start, part[:middle])]
        else:
            yield start, part, answer
