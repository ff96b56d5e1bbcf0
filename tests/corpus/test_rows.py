"""Texts out of files: parsing, rows that fail alone, and errors of invalid files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from worker.offline.rows import CorpusError, RowSource, TextRow


def rows(path: Path, **options: object) -> list[TextRow]:
    source = RowSource([path], **options)  # type: ignore[arg-type]
    found = list(source)
    assert source.count() == len(found)
    return found


def texts(path: Path, **options: object) -> list[str | None]:
    return [row.text for row in rows(path, **options)]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content", [b"a\nb c\n", b"a\nb c", b"a\r\nb c\r\n", b"\xef\xbb\xbfa\nb c\n"]
)
def test_each_line_of_plain_text_is_a_text(tmp_path: Path, content: bytes) -> None:
    assert texts(written(tmp_path / "a.txt", content)) == ["a", "b c"]


def test_an_empty_line_is_a_text_and_an_empty_file_has_none(tmp_path: Path) -> None:
    assert texts(written(tmp_path / "a.txt", b"a\n\nb\n")) == ["a", "", "b"]
    assert texts(written(tmp_path / "b.txt", b"")) == []


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    content = "a\x0b\u2028b\rc\n".encode()
    assert texts(written(tmp_path / "a.txt", content)) == ["a\x0b\u2028b\rc"]


def test_bytes_that_are_no_text_reach_the_tokenizer_of_that_row_alone(tmp_path: Path) -> None:
    first, second = texts(written(tmp_path / "a.txt", b"\xff\nb\n"))
    assert first == "\udcff"
    assert second == "b"


def test_json_lines_are_strings_or_objects(tmp_path: Path) -> None:
    content = b'"a"\n{"text": "b", "id": 1}\n{"text": "\\ud800"}\n'
    path = written(tmp_path / "a.jsonl", content)
    assert texts(path)[:2] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"3", "int"),
        (b'{"body": "b"}', "'text'"),
        (b'{"text": 3}', "int"),
        (b'{"text": null}', "NoneType"),
    ],
)
def test_a_line_without_a_text_fails_alone_and_says_why(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    first, second = rows(written(tmp_path / "a.jsonl", line + b'\n"b"\n'))
    assert first.text is None
    assert reason in first.reason
    assert second.text == "b"


def test_a_csv_field_may_hold_commas_quotes_and_newlines(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", b'id,text\n1,"a, ""b""\nc"\n2,d\n')
    assert texts(path) == ['a, "b"\nc', "d"]


def test_a_short_csv_row_fails_alone(tmp_path: Path) -> None:
    first, second = rows(written(tmp_path / "a.csv", b"id,text\n1\n2,d,more\n"))
    assert first.text is None
    assert second.text == "d"


def test_parquet_is_read_in_its_order_and_null_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"id": [1, 2, 3], "text": ["a", None, "c"]}), path)
    assert texts(path) == ["a", None, "c"]


def test_the_only_column_needs_no_name_and_several_do(tmp_path: Path) -> None:
    assert texts(written(tmp_path / "a.csv", b"body\na\n")) == ["a"]
    several = written(tmp_path / "b.csv", b"id,body\n1,a\n")
    with pytest.raises(CorpusError, match="no column 'text' for --column; there are: 'id', 'body'"):
        rows(several)
    assert texts(several, column="body") == ["a"]


def test_columns_to_keep_come_with_their_rows(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", b"id,text\n1,a\n2,b\n")
    assert [row.kept for row in rows(path, keep=("id",))] == [{"id": "1"}, {"id": "2"}]
    with pytest.raises(CorpusError, match="'name' for --keep"):
        rows(path, keep=("name",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.doc", b"", "does not end in .txt"),
        ("a.parquet", b"PAR", "is not a Parquet file"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(CorpusError, match=message) as raised:
        list(RowSource([path]))
    assert str(path) in raised.value.message


def test_a_missing_file_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is not a file"):
        RowSource([tmp_path / "a.txt"])


def test_standard_input_goes_alone() -> None:
    with pytest.raises(CorpusError, match="goes alone"):
        RowSource([Path("-"), Path("-")])
