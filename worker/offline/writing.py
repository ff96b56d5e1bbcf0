"""Write vectors into files atomically: `.npy`, JSON Lines and Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, repeat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from worker.contract.outcomes import Matrix
from worker.offline.rows import CorpusError, RowSource, import_parquet

OUTPUTS = ("npy", "jsonl", "parquet")
#: Rows that are turned into Python or Arrow objects at a time.
_ROWS = 4_096


def check_output(path: Path, source: RowSource) -> str:
    """The format of an output by its ending. Raises CorpusError if it cannot be written."""
    form = path.suffix.lower().lstrip(".")
    if form not in OUTPUTS:
        raise CorpusError(f"{path} does not end in .{', .'.join(OUTPUTS)}")
    if source.keep and not source.repeatable:
        raise CorpusError("--keep reads the input again, which standard input cannot be")
    if form == "npy" and source.keep:
        raise CorpusError("an .npy file holds vectors alone; --keep needs .jsonl or .parquet")
    if form == "parquet":
        import_parquet()
    return form


def write(
    path: Path,
    vectors: Matrix,
    errors: Iterable[Mapping[str, Any]],
    source: RowSource,
) -> None:
    """Write all vectors, float32 (n, d), to a file in the format of its ending.

    For a failed text, `.npy` has a row of zeros; the others have null, and JSON Lines also the
    error. The columns that the source keeps are copied: to Parquet with their types if the source
    is Parquet, else as strings. The file appears when it is complete. Raises CorpusError if
    columns do not fit.
    """
    form = check_output(path, source)
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            if form == "npy":
                _npy(file, vectors)
            elif form == "jsonl":
                _jsonl(file, vectors, errors, _columns(source))
            else:
                _parquet(file, vectors, errors, source)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def lines(
    start: int, vectors: Matrix | None, errors: Mapping[int, Mapping[str, Any]], size: int
) -> bytes:
    """JSON Lines of the rows from `start` on; `errors` by the index of the row in the corpus."""
    parts = []
    for row in range(size):
        index = start + row
        error = errors.get(index)
        vector = None if error is not None or vectors is None else vectors[row]
        parts.append(_line(index, vector, error, {}))
    return b"".join(parts)


def _npy(file: BinaryIO, vectors: Matrix) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": vectors.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for start in range(0, len(vectors), _ROWS):
        file.write(np.ascontiguousarray(vectors[start : start + _ROWS], dtype="<f4").tobytes())


def _jsonl(
    file: BinaryIO,
    vectors: Matrix,
    errors: Iterable[Mapping[str, Any]],
    columns: Iterator[Mapping[str, Any]],
) -> None:
    failures = iter(errors)
    failure = next(failures, None)
    for index, vector in enumerate(vectors):
        values = next(columns)
        if failure is not None and failure["index"] == index:
            file.write(_line(index, None, failure, values))
            failure = next(failures, None)
        else:
            file.write(_line(index, vector, None, values))


def _parquet(
    file: BinaryIO, vectors: Matrix, errors: Iterable[Mapping[str, Any]], source: RowSource
) -> None:
    import pyarrow as pa

    failed = np.zeros(len(vectors), dtype=bool)
    failed[[error["index"] for error in errors]] = True
    kept = source.parquet_schema()
    strings = all(pa.types.is_string(field.type) for field in kept)
    columns = _columns(source)
    # A list type needs a length of at least 1; if all texts failed, all vectors are null anyway.
    width = max(1, vectors.shape[1])
    embedding = pa.field("embedding", pa.list_(pa.float32(), width))
    try:
        with import_parquet().ParquetWriter(file, kept.append(embedding)) as writer:
            for start in range(0, len(vectors), _ROWS):
                block = np.ascontiguousarray(vectors[start : start + _ROWS])
                rows = [_strings(row) if strings else row for row in islice(columns, len(block))]
                arrays = [pa.array((row[f.name] for row in rows), f.type) for f in kept]
                mask = pa.array(failed[start : start + _ROWS])
                if vectors.shape[1]:
                    flat = pa.array(block.reshape(-1))
                    arrays.append(pa.FixedSizeListArray.from_arrays(flat, width, mask=mask))
                else:
                    arrays.append(pa.nulls(len(block), embedding.type))
                writer.write_table(pa.table(arrays, schema=kept.append(embedding)))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise CorpusError(f"the columns to keep do not fit into a Parquet file: {error}") from error


def _strings(row: Mapping[str, Any]) -> dict[str, str | None]:
    """Values as text: strings as they are, others as JSON, null as null."""
    return {
        name: value
        if value is None or isinstance(value, str)
        else orjson.dumps(value, default=_text).decode()
        for name, value in row.items()
    }


def _columns(source: RowSource) -> Iterator[Mapping[str, Any]]:
    """The values to copy, row by row; an endless series of empty ones if there are no columns."""
    return (row.kept for row in source) if source.keep else repeat({})


def _line(
    index: int,
    vector: Matrix | None,
    error: Mapping[str, Any] | None,
    values: Mapping[str, Any],
) -> bytes:
    line: dict[str, Any] = {"index": index, **values, "embedding": vector}
    if error is not None:
        line["error"] = {"code": error["code"], "message": error["message"]}
    return orjson.dumps(line, default=_text, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"


def _text(value: Any) -> str:
    """Return the text of a value without a JSON form, such as bytes or a decimal in a column."""
    if isinstance(value, np.ndarray):
        raise TypeError("vectors are no text")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
