from __future__ import annotations

import io
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from api.dialects.openai import uploads
from tests.api_stand import ApiStand, api_stand
from tests.processes import ROOT
from worker.contract import keys
from worker.store.files import FileRecord

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {}}\n'


@pytest.fixture
def stand(redis_url: str, tmp_path: Path) -> Iterator[ApiStand]:
    with api_stand(redis_url, files=str(tmp_path / "files")) as made:
        yield made


def upload(
    stand: ApiStand, data: bytes = LINE, name: str = "lines.jsonl", **form: Any
) -> TestResponse:
    members = {"purpose": "batch", "file": (io.BytesIO(data), name)} | form
    return stand.client.post(
        "/v1/files",
        data={key: value for key, value in members.items() if value is not None},
        content_type="multipart/form-data",
    )


def uploaded(stand: ApiStand, *arguments: Any, **form: Any) -> dict[str, Any]:
    response = upload(stand, *arguments, **form)
    assert response.status_code == 200, response.data
    body: dict[str, Any] = response.get_json()
    return body


def stored(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "files").rglob("*") if path.is_file()]


def test_an_uploaded_file_comes_back_as_it_was(stand: ApiStand, tmp_path: Path) -> None:
    data = LINE * 3000
    file = uploaded(stand, data)
    assert file["id"].startswith("file-")
    assert len(file["id"]) == len("file-") + 32
    assert (file["object"], file["purpose"], file["status"]) == ("file", "batch", "processed")
    assert (file["filename"], file["bytes"]) == ("lines.jsonl", len(data))
    assert file["expires_at"] - file["created_at"] == 30 * 24 * 3600
    assert stand.client.get(f"/v1/files/{file['id']}").get_json() == file
    content = stand.client.get(f"/v1/files/{file['id']}/content")
    assert content.data == data
    assert content.content_length == len(data)
    assert content.headers["Content-Disposition"] == "attachment; filename=lines.jsonl"
    assert [path.stat().st_size for path in stored(tmp_path)] == [len(data)]


def test_the_folder_is_nobody_elses(stand: ApiStand, tmp_path: Path) -> None:
    uploaded(stand)
    assert (tmp_path / "files").stat().st_mode & 0o077 == 0


def test_a_file_keeps_its_name_but_for_what_would_break_a_header(stand: ApiStand) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; '
        b"filename*=UTF-8''t%C3%ABxt%0A%00s.jsonl\r\n\r\nx\r\n--b--\r\n"
    )
    form = "multipart/form-data; boundary=b"
    response = stand.client.post("/v1/files", data=body, content_type=form)
    assert response.status_code == 200, response.data
    file = response.get_json()
    assert "ë" in file["filename"]
    assert not set(file["filename"]) & set("\n\x00")
    content = stand.client.get(f"/v1/files/{file['id']}/content")
    assert content.status_code == 200
    assert stand.client.get(f"/v1/files/{file['id']}").status_code == 200


def test_a_deleted_file_is_gone_with_its_bytes(stand: ApiStand, tmp_path: Path) -> None:
    file_id = uploaded(stand)["id"]
    answer = stand.client.delete(f"/v1/files/{file_id}", content_type="application/json")
    assert answer.get_json() == {"id": file_id, "object": "file", "deleted": True}
    for path in ("", "/content"):
        assert stand.client.get(f"/v1/files/{file_id}{path}").status_code == 404
    assert stand.client.delete(f"/v1/files/{file_id}").status_code == 404
    assert stand.client.get("/v1/files").get_json()["data"] == []
    assert stored(tmp_path) == []


def test_files_are_listed_page_by_page(stand: ApiStand) -> None:
    ids = [uploaded(stand)["id"] for _ in range(5)]
    made = FileRecord(
        "file-made",
        "out.jsonl",
        1,
        "batch_output",
        created_at=stand.backend.files.now(),
        expires_at=2e9,
    )
    stand.backend.files.add(made)

    def listed(query: str) -> tuple[list[str], bool]:
        page = stand.client.get(f"/v1/files?{query}").get_json()
        names = [file["id"] for file in page["data"]]
        assert (page["first_id"], page["last_id"]) == (names[0], names[-1])
        return names, page["has_more"]

    assert listed("") == (["file-made", *reversed(ids)], False)
    assert listed("purpose=batch&limit=2") == ([ids[4], ids[3]], True)
    assert listed(f"purpose=batch&limit=2&after={ids[3]}") == ([ids[2], ids[1]], True)
    assert listed(f"purpose=batch&limit=2&after={ids[1]}") == ([ids[0]], False)
    assert listed("order=asc&limit=3") == (ids[:3], True)
    assert listed("purpose=batch_output") == (["file-made"], False)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=10001", "after=nobody", "purpose=x", "order=up"]
)
def test_a_list_that_cannot_be_given_says_which_parameter(stand: ApiStand, query: str) -> None:
    response = stand.client.get(f"/v1/files?{query}")
    assert 400 <= response.status_code < 500
    assert query.split("=")[0] in response.get_data(as_text=True)


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ({"purpose": None}, "purpose"),
        ({"purpose": "fine-tune"}, "purpose"),
        ({"file": None}, "file"),
        ({"file": "a field"}, "file"),
        ({"second": (io.BytesIO(b"x"), "second.jsonl")}, "more than one"),
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "x", "expires_after[seconds]": "3600"}, "anchor"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "9"}, "3,600"),
        ({"purpose": "x" * 300_000}, ""),
    ],
)
def test_a_wrong_form_is_refused_and_leaves_nothing(
    stand: ApiStand, tmp_path: Path, form: dict[str, Any], named: str
) -> None:
    response = upload(stand, **form)
    assert 400 <= response.status_code < 500
    assert named in response.get_data(as_text=True)
    assert stored(tmp_path) == []
    assert stand.client.get("/v1/files").get_json()["data"] == []


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{}", "application/json"),
        (b"x", "multipart/form-data"),
        (b"no parts", "multipart/form-data; boundary=b"),
        (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\ncut off',
            "multipart/form-data; boundary=b",
        ),
    ],
)
def test_what_is_no_form_is_refused(
    stand: ApiStand, tmp_path: Path, body: bytes, content_type: str
) -> None:
    response = stand.client.post("/v1/files", data=body, content_type=content_type)
    assert 400 <= response.status_code < 500
    assert stored(tmp_path) == []


def test_a_file_past_its_bounds_is_refused_while_it_comes(
    stand: ApiStand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_LINES", 3)
    assert upload(stand, b"x\n" * 3).status_code == 200
    assert upload(stand, b"x\n" * 3 + b"y").status_code == 413
    monkeypatch.setattr(uploads, "MAX_BYTES", 100)
    assert upload(stand, b"x" * 100).status_code == 200
    assert upload(stand, b"x" * 101).status_code == 413
    assert upload(stand, b"x" * 300_000).status_code == 413
    assert len(stored(tmp_path)) == 2


def test_a_file_whose_time_has_passed_is_gone_and_the_next_upload_removes_its_bytes(
    stand: ApiStand, tmp_path: Path
) -> None:
    file_id = uploaded(
        stand, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    )["id"]
    stand.redis.hset(keys.file(file_id), "expires", 1)
    stand.redis.zadd(keys.files_expiry("embedq"), {file_id: 1})
    assert stand.client.get(f"/v1/files/{file_id}").status_code == 404
    assert stand.client.get("/v1/files").get_json()["data"] == []
    second = uploaded(stand)["id"]
    assert [path.name for path in stored(tmp_path)] == [second]
    assert not stand.redis.exists(keys.file(file_id))


def test_an_upload_that_was_cut_off_is_swept_away(stand: ApiStand, tmp_path: Path) -> None:
    files = stand.backend.files
    files.reserve("file-lost", "", 1)
    with files.storage.writer("files/file-lost") as lost:
        lost.write(b"half")
    stand.redis.zadd(keys.files_expiry("embedq"), {"file-lost": 1})
    second = uploaded(stand)["id"]
    assert [path.name for path in stored(tmp_path)] == [second]


def test_another_owners_file_does_not_exist(stand: ApiStand) -> None:
    stand.backend.files.add(FileRecord("file-theirs", "f", 1, "batch", "them", expires_at=2e9))
    assert stand.client.get("/v1/files/file-theirs").status_code == 404
    assert stand.client.get("/v1/files/file-theirs/content").status_code == 404
    assert stand.client.delete("/v1/files/file-theirs").status_code == 404
    assert stand.client.get("/v1/files").get_json()["data"] == []


def test_a_storage_that_is_not_there_is_said_so(redis_url: str, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file, no folder")
    for url in (str(taken), "nosuch://bucket"):
        with api_stand(redis_url, files=url) as stand:
            response = upload(stand)
            assert response.status_code == 503
            assert url in response.get_data(as_text=True)


def test_a_file_whose_bytes_are_elsewhere_is_not_found(stand: ApiStand) -> None:
    file_id = uploaded(stand)["id"]
    stand.backend.files.storage.remove(f"files/{file_id}")
    assert stand.client.get(f"/v1/files/{file_id}/content").status_code == 404


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ("", "gevent"),
        ("/data/files", "gevent"),
        ("file:///data/files", "gevent"),
        ("s3://bucket/files", "gthread"),
    ],
)
def test_requests_have_threads_where_files_are_in_a_bucket(
    monkeypatch: pytest.MonkeyPatch, files: str, kind: str
) -> None:
    monkeypatch.setenv("EMBEDQ_FILES", files)
    path = ROOT / "api" / "serving.py"
    assert runpy.run_path(str(path))["worker_class"] == kind


def test_uploads_and_batches_past_the_bounds_are_refused_and_leave_nothing(
    stand: ApiStand, tmp_path: Path
) -> None:
    room = stand.backend.files.room
    file = uploaded(stand)["id"]
    room.bounds = room.bounds._replace(tenant_files=1)
    refused = upload(stand)
    assert refused.status_code == 413
    error = refused.get_json()["error"]
    assert (error["code"], error["param"]) == ("files_full", "file")
    assert "1 files" in error["message"]
    run = {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    assert stand.client.post("/v1/batches", json=run).status_code == 413
    assert len(stored(tmp_path)) == 1
    stand.client.delete(f"/v1/files/{file}")
    assert uploaded(stand)["bytes"] == len(LINE)


def test_refused_uploads_take_no_room(stand: ApiStand) -> None:
    room = stand.backend.files.room
    room.bounds = room.bounds._replace(tenant_bytes=1_000)
    for _ in range(5):
        assert upload(stand, purpose="no").status_code == 400
    assert upload(stand, LINE * 20).status_code == 413
    assert uploaded(stand)["bytes"] == len(LINE)
