"""Lines that are answered, written and counted together, and their texts as jobs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from worker.contract.jobs import EncodingFormat, JobOptions
from worker.contract.models import ModelInfo

#: Texts and bytes of text that one job carries, unless a single line has more.
PACK_TEXTS = 64
PACK_BYTES = 256 * 1024


@dataclass(slots=True)
class AnsweredLine:
    """One line of a window, and its answer once there is one."""

    number: int
    custom_id: str
    texts: Sequence[str] = ()
    encoding_format: EncodingFormat = "float"
    answer: bytes | None = None
    #: Whether the answer is vectors; tokens of their texts.
    ok: bool = False
    tokens: int = 0

    def settle(self, answer: bytes, *, ok: bool = False, tokens: int = 0) -> None:
        """Set the answer and drop the texts."""
        self.answer, self.ok, self.tokens = answer, ok, tokens
        self.texts = ()


@dataclass(slots=True)
class LineWindow:
    """Consecutive lines up to line `line`, which ends before byte `end`."""

    entries: list[AnsweredLine] = field(default_factory=list)
    end: int = 0
    line: int = 0
    #: Ids of the jobs that produced its answers.
    jobs: list[str] = field(default_factory=list)

    @property
    def answered(self) -> bool:
        return all(entry.answer is not None for entry in self.entries)


class Want(NamedTuple):
    """An entry's options and model; `tokens` is an estimate."""

    entry: AnsweredLine
    options: JobOptions
    model: ModelInfo
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Entries with the same options: the texts of one job, in order."""

    window: LineWindow
    entries: Sequence[AnsweredLine]
    options: JobOptions
    model: ModelInfo
    tokens: int
    #: Id of an earlier job with the same lines and a lost outcome.
    before: str = ""

    @property
    def texts(self) -> list[str]:
        return [text for entry in self.entries for text in entry.texts]

    def halves(self) -> list[Pack]:
        """Split into two jobs, to isolate the line that fails the others."""
        middle = len(self.entries) // 2
        return [
            replace(self, entries=part, tokens=self.tokens // 2)
            for part in (self.entries[:middle], self.entries[middle:])
        ]


def packs(window: LineWindow, wants: Iterable[Want], most_tokens: int) -> list[Pack]:
    """The fewest jobs that the bounds allow; equal lines give equal jobs."""
    alike: dict[JobOptions, list[Want]] = {}
    for want in wants:
        alike.setdefault(want.options, []).append(want)
    return [pack for group in alike.values() for pack in _cut(window, group, most_tokens)]


def _cut(window: LineWindow, wants: Sequence[Want], most_tokens: int) -> Iterable[Pack]:
    held: list[Want] = []
    texts = tokens = size = 0
    for want in wants:
        more = len(want.entry.texts)
        length = sum(map(len, want.entry.texts))
        if held and (
            texts + more > PACK_TEXTS
            or tokens + want.tokens > most_tokens
            or size + length > PACK_BYTES
        ):
            yield _pack(window, held)
            held, texts, tokens, size = [], 0, 0, 0
        held.append(want)
        texts, tokens, size = texts + more, tokens + want.tokens, size + length
    if held:
        yield _pack(window, held)


def _pack(window: LineWindow, wants: Sequence[Want]) -> Pack:
    tokens = sum(want.tokens for want in wants)
    entries = [want.entry for want in wants]
    return Pack(window, entries, wants[0].options, wants[0].model, tokens)
