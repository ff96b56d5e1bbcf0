"""The progress of a run, on disk next to its output, so that the run can be interrupted."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from worker.contract.outcomes import Matrix
from worker.offline.encoding import EncodedRows
from worker.offline.rows import CorpusError

_FLOAT = 4


@dataclass(frozen=True, slots=True)
class Done:
    """Finished rows, and the bytes of the files that contain them."""

    rows: int = 0
    #: Length of a vector; 0 while no text has one.
    dimensions: int = 0
    failed: int = 0
    tokens: int = 0
    truncated: int = 0
    errors_bytes: int = 0


class Kept:
    """A folder `OUT.part`: vectors, errors, and the state with the valid lengths of both.

    One process owns it through a lock on a file in it. A window is first appended to the vectors
    and the errors, then the state is replaced in one step. If the process is killed in between,
    the next one cuts off the data that was appended after the last state.
    """

    def __init__(self, folder: Path, fingerprint: Any) -> None:
        """Resume an earlier run with the same fingerprint, else begin.

        Raises CorpusError if the folder is another run's, or another process uses it.
        """
        self._folder = folder
        self._fingerprint = orjson.loads(orjson.dumps(fingerprint))
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise CorpusError(f"another process is writing to {folder}") from None
        try:
            self.done = self._read()
        except CorpusError:
            self._lock.close()
            raise
        self._vectors = self._opened("vectors.f32", self._vector_bytes())
        self._errors = self._opened("errors.jsonl", self.done.errors_bytes)

    def add(self, window: EncodedRows) -> None:
        """Append a window. Raises CorpusError if its vectors have another length."""
        done = self.done
        dimensions = done.dimensions
        if window.vectors is not None:
            width = window.vectors.shape[1]
            if dimensions and width != dimensions:
                raise CorpusError(
                    f"vectors of {width} dimensions after {dimensions} before: the model has "
                    "changed since the run began; start it over with --restart"
                )
            if not dimensions:
                dimensions = width
                # The rows before the first vector, which all failed.
                self._vectors.write(bytes(done.rows * width * _FLOAT))
        rows = window.vectors
        if rows is None:
            rows = np.zeros((window.size, dimensions), dtype=np.float32)
        self._vectors.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        errors = b"".join(
            orjson.dumps(asdict(replace(error, index=done.rows + error.index))) + b"\n"
            for error in window.errors
        )
        self._errors.write(errors)
        self._vectors.flush()
        self._errors.flush()
        self.done = Done(
            rows=done.rows + window.size,
            dimensions=dimensions,
            failed=done.failed + len(window.errors),
            tokens=done.tokens + window.tokens,
            truncated=done.truncated + window.truncated,
            errors_bytes=done.errors_bytes + len(errors),
        )
        self._write()

    def vectors(self) -> Matrix:
        """All vectors, float32 (rows, d), mapped from the disk; the rows of failed texts zero."""
        shape = (self.done.rows, self.done.dimensions)
        if not (shape[0] and shape[1]):
            return np.zeros(shape, dtype=np.float32)
        # A plain array over the map: orjson takes no subclasses.
        return np.asarray(np.memmap(self._path("vectors.f32"), dtype="<f4", mode="r", shape=shape))

    def errors(self) -> Iterator[dict[str, Any]]:
        """Why rows have no vector: `index`, `code` and `message`, in the order of the rows."""
        with self._path("errors.jsonl").open("rb") as file:
            yield from map(orjson.loads, file)

    def close(self) -> None:
        """Leave the folder for a later run."""
        self._vectors.close()
        self._errors.close()
        self._lock.close()

    def remove(self) -> None:
        """Remove the folder after the output has been written."""
        shutil.rmtree(self._folder)

    def _read(self) -> Done:
        try:
            state = orjson.loads(self._path("state.json").read_bytes())
        except FileNotFoundError:
            return Done()
        if state["fingerprint"] != self._fingerprint:
            raise CorpusError(
                f"{self._folder} is of a run with other files or options; start over with "
                "--restart, or give another output"
            )
        return Done(**state["done"])

    def _write(self) -> None:
        state = {"fingerprint": self._fingerprint, "done": asdict(self.done)}
        new = self._path("state.new")
        new.write_bytes(orjson.dumps(state))
        new.replace(self._path("state.json"))

    def _opened(self, name: str, size: int) -> BinaryIO:
        """A file to append to, truncated to the length in the state."""
        file = self._path(name).open("ab")
        os.truncate(file.fileno(), size)
        return file

    def _vector_bytes(self) -> int:
        return self.done.rows * self.done.dimensions * _FLOAT

    def _path(self, name: str) -> Path:
        return self._folder / name
