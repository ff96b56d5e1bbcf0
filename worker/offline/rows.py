"""Texts out of files: plain text, JSON Lines, CSV and Parquet, one row at a time."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import orjson

from worker.contract.errors import EmbedqError

FORMATS = ("txt", "jsonl", "csv", "parquet")
#: Stands for standard input among the files.
STDIN = Path("-")
#: The column to read if none is named and there are several.
DEFAULT_COLUMN = "text"
#: Rows of a Parquet file that are in memory at a time.
_PARQUET_ROWS = 8_192
#: Bytes that are counted at a time.
_BLOCK = 2**20


class CorpusError(EmbedqError):
    """A file cannot be read or written; the message names it and the remedy."""

    code = "invalid_file"


@dataclass(frozen=True, slots=True)
class TextRow:
    """One row of a file: its text, or the reason for a missing text, and the columns to copy."""

    text: str | None
    reason: str = ""
    kept: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RowSource:
    """The source of texts; iterating reads it from the start.

    `format` is for standard input and for files without a known ending; `keep` names the columns
    that come with each row. A row without a text, or that cannot be read, has a reason instead and
    fails alone. Raises CorpusError if a file does not exist, has no such column, or is not of its
    format.
    """

    paths: Sequence[Path]
    column: str | None = None
    format: str | None = None
    keep: Sequence[str] = ()

    def __post_init__(self) -> None:
        for path in self.paths:
            form = self.format_of(path)
            if path == STDIN:
                if len(self.paths) > 1:
                    raise CorpusError("standard input (-) goes alone, without other files")
                if form == "parquet":
                    raise CorpusError("a Parquet file cannot come through standard input")
            elif not path.is_file():
                raise CorpusError(f"{path} is not a file")
            if form == "txt" and self.keep:
                raise CorpusError(f"{path} is plain text: there is no column to keep")

    @property
    def repeatable(self) -> bool:
        """Whether it can be read more than once."""
        return STDIN not in self.paths

    def __iter__(self) -> Iterator[TextRow]:
        return chain.from_iterable(map(self._rows, self.paths))

    def count(self) -> int | None:
        """How many rows there are, None for standard input. Raises as iterating does."""
        return sum(map(self._count, self.paths)) if self.repeatable else None

    def fingerprint(self) -> list[Any]:
        """Values that identify these files in their current state."""
        stats = [(path, path.stat()) for path in self.paths if path != STDIN]
        files = [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        return [files, self.column, self.format]

    def format_of(self, path: Path) -> str:
        """How a file is read: as asked for, else by its ending. Raises CorpusError."""
        if self.format is not None:
            return self.format
        if path == STDIN:
            return "txt"
        ending = path.suffix.lower().lstrip(".")
        form = {"ndjson": "jsonl", "text": "txt", "pq": "parquet"}.get(ending, ending)
        if form not in FORMATS:
            raise CorpusError(
                f"{path} does not end in .{', .'.join(FORMATS)}; name its format with --format"
            )
        return form

    def parquet_schema(self) -> Any:
        """An Arrow schema of the columns to keep: a Parquet file's own types, else strings."""
        import pyarrow as pa

        if self.keep and self.format_of(self.paths[0]) == "parquet":
            with _parquet_file(self.paths[0]) as file:
                return pa.schema([file.schema_arrow.field(name) for name in self.keep])
        return pa.schema([(name, pa.string()) for name in self.keep])

    def _rows(self, path: Path) -> Iterator[TextRow]:
        form = self.format_of(path)
        if form == "parquet":
            yield from _parquet(path, self.column, self.keep)
            return
        with _opened(path) as file:
            if form == "txt":
                yield from (TextRow(line.rstrip("\r\n")) for line in file)
            elif form == "jsonl":
                yield from (_json_row(line, self.column, self.keep) for line in file)
            else:
                yield from _csv(path, file, self.column, self.keep)

    def _count(self, path: Path) -> int:
        form = self.format_of(path)
        if form == "parquet":
            with _parquet_file(path) as file:
                _column(path, file.schema_arrow.names, self.column, self.keep)
                return int(file.metadata.num_rows)
        if form == "csv":
            return sum(1 for _ in self._rows(path))
        with path.open("rb") as file:
            # Blocks that end anywhere; the last line may lack its \n.
            lines, last = 0, b"\n"
            while block := file.read(_BLOCK):
                lines, last = lines + block.count(b"\n"), block[-1:]
            return lines + (last != b"\n")


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    # Bytes that are not UTF-8 become lone surrogates; the tokenizer rejects only their text.
    # Only \n ends a line of text: a lone \r belongs to it, and csv needs every character.
    opened = sys.stdin.fileno() if path == STDIN else path
    with open(
        opened,
        encoding="utf-8-sig",
        errors="surrogateescape",
        newline="\n",
        closefd=path != STDIN,
    ) as file:
        yield file


def _json_row(line: str, column: str | None, keep: Sequence[str]) -> TextRow:
    try:
        value = orjson.loads(line)
    except ValueError:
        return TextRow(None, "the line is not JSON")
    if isinstance(value, str) and column is None and not keep:
        return TextRow(value)
    if not isinstance(value, dict):
        return TextRow(None, f"the line is a {type(value).__name__}, not an object")
    return _row(value, column or DEFAULT_COLUMN, keep)


def _csv(path: Path, file: TextIO, column: str | None, keep: Sequence[str]) -> Iterator[TextRow]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(file)
    name = _column(path, list(reader.fieldnames or ()), column, keep)
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield TextRow(None, f"line {reader.line_num} is not CSV: {error}")
        else:
            yield _row(values, name, keep)


def _parquet(path: Path, column: str | None, keep: Sequence[str]) -> Iterator[TextRow]:
    with _parquet_file(path) as file:
        name = _column(path, file.schema_arrow.names, column, keep)
        for batch in file.iter_batches(_PARQUET_ROWS, columns=[name, *keep]):
            yield from (_row(values, name, keep) for values in batch.to_pylist())


def _parquet_file(path: Path) -> Any:
    try:
        return import_parquet().ParquetFile(path)
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path} is not a Parquet file: {error}") from error


def _column(path: Path, names: list[str], column: str | None, keep: Sequence[str]) -> str:
    """The column of the texts: the one asked for, the only one, or `text`. Raises CorpusError."""
    name = column or (names[0] if len(names) == 1 else DEFAULT_COLUMN)
    for wanted, option in ((name, "--column"), *((kept, "--keep") for kept in keep)):
        if wanted not in names:
            there = ", ".join(map(repr, names)) or "none"
            raise CorpusError(f"{path} has no column {wanted!r} for {option}; there are: {there}")
    return name


def _row(values: Mapping[str, Any], column: str, keep: Sequence[str]) -> TextRow:
    text = values.get(column)
    kept = {name: values.get(name) for name in keep}
    if isinstance(text, str):
        return TextRow(text, kept=kept)
    if column not in values:
        return TextRow(None, f"there is no {column!r}", kept)
    return TextRow(None, f"{column!r} is a {type(text).__name__}, not a string", kept)


def import_parquet() -> Any:
    """The module `pyarrow.parquet`. Raises CorpusError if it is not installed."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise CorpusError("Parquet files need pyarrow: pip install 'embedq[parquet]'") from error
    return parquet
