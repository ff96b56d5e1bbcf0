"""Runs over files with an encoder that counts: order, failures, interruptions, outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from worker.contract.errors import JobFailed
from worker.contract.outcomes import Outcome, TextError
from worker.offline import Report, run
from worker.offline.encoding import WINDOW
from worker.offline.rows import CorpusError, RowSource
from worker.offline.run import folder_of
from worker.offline.writing import OUTPUTS

OPTIONS = {"model": None}


class Lengths:
    """Vectors (length of the text, 1); `poison` fails the whole job, `odd` fails alone."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.texts: list[str] = []
        self.interrupted = False
        self._left = stop_after

    def embed(self, texts: list[str]) -> Outcome | JobFailed:
        if self._left is not None and len(self.texts) >= self._left:
            raise KeyboardInterrupt
        self.texts += texts
        if "poison" in texts:
            return JobFailed("poisoned", "the job killed its worker")
        vectors = np.array([[len(text), 1] for text in texts], dtype=np.float32)
        errors = [TextError(i, "invalid_text", "odd") for i, t in enumerate(texts) if t == "odd"]
        vectors[[error.index for error in errors]] = 0
        return Outcome("lengths", vectors, len(texts), errors)

    def close(self) -> None:
        self.interrupted = True


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[[list[str]], RowSource]:
    def write(texts: list[str]) -> RowSource:
        path = tmp_path / "texts.txt"
        path.write_text("".join(text + "\n" for text in texts))
        return RowSource([path])

    return write


def many(windows: float) -> list[str]:
    return ["x" * (index % 97) for index in range(int(windows * WINDOW))]


def read(path: Path) -> np.ndarray:
    """The vectors of an output, NaN if null."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".jsonl":
        rows = [json.loads(line)["embedding"] for line in path.read_text().splitlines()]
    else:
        rows = parquet.read_table(path)["embedding"].to_pylist()
    return np.array([row or [np.nan, np.nan] for row in rows], dtype=np.float32)


@pytest.mark.parametrize("form", OUTPUTS)
def test_vectors_come_in_the_order_of_the_rows(
    corpus: Callable[[list[str]], RowSource], tmp_path: Path, form: str
) -> None:
    texts = many(20.5)
    output = tmp_path / f"out.{form}"
    report = run(corpus(texts), output, Lengths(), options=OPTIONS)
    assert report == Report(len(texts), tokens=len(texts))
    assert read(output)[:, 0].tolist() == [len(text) for text in texts]
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name, "texts.txt"]


@pytest.mark.parametrize("form", OUTPUTS)
def test_rows_that_fail_leave_their_neighbours_their_vectors(
    corpus: Callable[[list[str]], RowSource], tmp_path: Path, form: str
) -> None:
    texts = ["a", "odd", "poison", "bb"] + ["c"] * WINDOW
    output = tmp_path / f"out.{form}"
    report = run(corpus(texts), output, Lengths(), options=OPTIONS)
    assert report.failed == 2
    found = read(output)
    lost = found[[1, 2]]
    assert not lost.any() if form == "npy" else np.isnan(lost).all()
    assert found[[0, 3, 4], 0].tolist() == [1, 2, 1]


def test_json_lines_say_why_a_row_has_no_vector(
    corpus: Callable[[list[str]], RowSource], tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    run(corpus(["a", "poison"]), output, Lengths(), options=OPTIONS)
    first, second = map(json.loads, output.read_text().splitlines())
    assert first == {"index": 0, "embedding": [1.0, 1.0]}
    assert second["error"] == {"code": "poisoned", "message": "the job killed its worker"}


@pytest.mark.parametrize("form", OUTPUTS)
def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(
    corpus: Callable[[list[str]], RowSource], tmp_path: Path, form: str
) -> None:
    texts = many(40)
    texts[7] = "odd"
    source = corpus(texts)
    whole, output = tmp_path / f"whole.{form}", tmp_path / f"out.{form}"
    run(source, whole, Lengths(), options=OPTIONS)
    for stop in (10 * WINDOW, 12 * WINDOW):
        stopping = Lengths(stop)
        with pytest.raises(KeyboardInterrupt):
            run(source, output, stopping, options=OPTIONS)
        assert stopping.interrupted
        assert not output.exists()
    seen: list[int] = []
    last = Lengths()
    run(source, output, last, options=OPTIONS, progress=seen.append)
    assert seen[0] > 0
    assert len(last.texts) < len(texts)
    assert output.read_bytes() == whole.read_bytes()


def test_what_a_killed_run_wrote_after_its_last_state_is_cut_off(
    corpus: Callable[[list[str]], RowSource], tmp_path: Path
) -> None:
    texts = many(20)
    source, output = corpus(texts), tmp_path / "out.npy"
    with pytest.raises(KeyboardInterrupt):
        run(source, output, Lengths(12 * WINDOW), options=OPTIONS)
    for name in ("vectors.f32", "errors.jsonl"):
        with (folder_of(output) / name).open("ab") as file:
            file.write(b"torn")
    run(source, output, Lengths(), options=OPTIONS)
    assert np.load(output)[:, 0].tolist() == [len(text) for text in texts]


def test_rows_that_fail_before_the_first_vector_have_their_place(
    corpus: Callable[[list[str]], RowSource], tmp_path: Path
) -> None:
    output = tmp_path / "out.npy"
    run(corpus(["poison"] * WINDOW + ["aaa"]), output, Lengths(), options=OPTIONS)
    found = np.load(output)
    assert found.shape == (WINDOW + 1, 2)
    assert found[-1].tolist() == [3, 1]
    assert not found[:-1].any()


@pytest.mark.parametrize("form", OUTPUTS)
@pytest.mark.parametrize("texts", [[], ["poison"]])
def test_an_output_without_a_single_vector_is_whole_all_the_same(
    corpus: Callable[[list[str]], RowSource], tmp_path: Path, form: str, texts: list[str]
) -> None:
    output = tmp_path / f"out.{form}"
    report = run(corpus(texts), output, Lengths(), options=OPTIONS)
    assert report.failed == len(texts)
    assert len(read(output)) == len(texts)


def test_a_run_with_other_options_or_files_does_not_go_on(
    corpus: Callable[[list[str]], RowSource], tmp_path: Path
) -> None:
    source, output = corpus(many(20)), tmp_path / "out.npy"
    with pytest.raises(KeyboardInterrupt):
        run(source, output, Lengths(12 * WINDOW), options=OPTIONS)
    with pytest.raises(CorpusError, match="--restart"):
        run(source, output, Lengths(), options={"model": "another"})
    with pytest.raises(CorpusError, match="--restart"):
        run(corpus(["changed"]), output, Lengths(), options=OPTIONS)


def test_kept_columns_have_the_types_of_their_parquet_file(tmp_path: Path) -> None:
    path, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    parquet.write_table(pa.table({"id": [None, 7], "text": ["a", "bb"]}), path)
    run(RowSource([path], keep=("id",)), output, Lengths(), options=OPTIONS)
    table = parquet.read_table(output)
    assert table["id"].to_pylist() == [None, 7]
    assert table.schema.field("id").type == pa.int64()


def test_kept_values_of_json_lines_stay_json(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a", "id": {"n": 1}}\n{"text": "b", "id": "x"}\n')
    source = RowSource([path], keep=("id",))
    lines, table = tmp_path / "out.jsonl", tmp_path / "out.parquet"
    run(source, lines, Lengths(), options=OPTIONS)
    run(source, table, Lengths(), options=OPTIONS)
    assert [json.loads(line)["id"] for line in lines.read_text().splitlines()] == [{"n": 1}, "x"]
    assert parquet.read_table(table)["id"].to_pylist() == ['{"n":1}', "x"]


def test_an_output_of_another_kind_is_refused_before_anything_runs(
    corpus: Callable[[list[str]], RowSource], tmp_path: Path
) -> None:
    encoder = Lengths()
    with pytest.raises(CorpusError, match=r"does not end in .npy"):
        run(corpus(["a"]), tmp_path / "out.txt", encoder, options=OPTIONS)
    assert not encoder.texts
