"""One run: from a source to an output that can be interrupted, or to a stream."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from worker.offline.checkpoint import Kept
from worker.offline.encoding import JobRunner, encode_in_order
from worker.offline.rows import CorpusError, RowSource
from worker.offline.writing import check_output, lines, write


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a run: numbers of rows, of rows without a vector, and of cut texts."""

    rows: int = 0
    failed: int = 0
    truncated: int = 0
    tokens: int = 0


def folder_of(output: Path) -> Path:
    """The folder in which an interrupted run keeps its progress."""
    return output.with_name(output.name + ".part")


def run(
    source: RowSource,
    output: Path,
    runner: JobRunner,
    *,
    options: Any,
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Embed every row of a source into one file, resuming an earlier run.

    `options` is JSON that must be the same for the run to resume. `progress` gets the number of
    rows done so far, first those of earlier runs. An interruption keeps the rows done. Raises
    CorpusError and the runner's exceptions.
    """
    check_output(output, source)
    fingerprint = [source.fingerprint(), options]
    with closing(Kept(folder_of(output), fingerprint)) as kept:
        if kept.done.rows and not source.repeatable:
            raise CorpusError("standard input cannot be read again; start over with --restart")
        progress(kept.done.rows)
        rows = islice(source, kept.done.rows, None)
        with closing(encode_in_order(rows, runner)) as windows:
            for window in windows:
                kept.add(window)
                progress(kept.done.rows)
        write(output, kept.vectors(), kept.errors(), source)
        done = kept.done
        kept.remove()
    return Report(done.rows, done.failed, done.truncated, done.tokens)


def stream(
    source: RowSource,
    file: BinaryIO,
    runner: JobRunner,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Embed every row of a source into JSON Lines, written as they are done."""
    report = Report()
    with closing(encode_in_order(source, runner)) as windows:
        for window in windows:
            errors = {report.rows + error.index: asdict(error) for error in window.errors}
            file.write(lines(report.rows, window.vectors, errors, window.size))
            file.flush()
            report = replace(
                report,
                rows=report.rows + window.size,
                failed=report.failed + len(window.errors),
                truncated=report.truncated + window.truncated,
                tokens=report.tokens + window.tokens,
            )
            progress(report.rows)
    return report
