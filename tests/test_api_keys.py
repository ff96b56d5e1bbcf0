"""API keys: authentication, the visible jobs, and the quota of each key."""

from __future__ import annotations

import io
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import redis
from click.testing import CliRunner
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api import create_app
from tests.api_stand import ApiStand, api_stand, problem
from tests.processes import eventually
from worker.cli import main
from worker.contract import keys
from worker.contract.settings import Settings
from worker.store.api_keys import KeyFile, KeyFileError, new_key
from worker.store.quotas import Quotas

VECTOR = np.full((1, 4), 0.5, dtype=np.float32)


@dataclass
class Caller:
    """A client with a key."""

    id: str
    secret: str
    client: FlaskClient

    def __call__(self, method: str, path: str, **options: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {self.secret}"} | options.pop("headers", {})
        return self.client.open(path, method=method, headers=headers, **options)

    def submit(self, text: str = "a text", **options: Any) -> TestResponse:
        return self("POST", "/jobs", json={"input": text}, **options)


@dataclass
class Keyed:
    """An API with a file of keys."""

    api: ApiStand
    file: KeyFile

    def caller(self, **fields: Any) -> Caller:
        made = new_key(**fields)
        self.file.add(made.key)
        caller = Caller(made.key.id, made.secret, self.api.app.test_client())
        eventually(lambda: caller("GET", "/jobs").status_code == 200)
        return caller


@pytest.fixture
def keyed(redis_url: str, tmp_path: Path) -> Iterator[Keyed]:
    file = KeyFile(tmp_path / "keys.json")
    file.add(new_key().key)
    with api_stand(redis_url, api_keys_file=file.path) as api:
        yield Keyed(api, file)


def test_without_a_key_only_health_and_documents_are_answered(keyed: Keyed) -> None:
    client = keyed.api.client
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz"):
        assert client.get(path).status_code == 200, path
    for path in ("/jobs", "/jobs/x", "/status", "/metrics"):
        refused = client.get(path)
        assert refused.status_code == 401, path
        assert refused.headers["WWW-Authenticate"].startswith("Bearer")
        assert problem(refused)["code"] == "unauthorized"


def test_every_route_but_the_open_ones_asks_for_a_key(keyed: Keyed) -> None:
    document = keyed.api.client.get("/openapi.json").get_json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            answer = keyed.api.client.open(path.replace("{id}", "x"), method=method.upper())
            assert (answer.status_code == 401) == (operation.get("security") != []), path


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": "Bearer eq_000000000000_" + "A" * 43},
        {"Authorization": "Basic dXNlcjpwYXNz"},
        {"Authorization": "Bearer " + "x" * 5000},
        {"Authorization": "Bearer \xe9\xff"},
        {"X-API-Key": "nonsense"},
    ],
)
def test_a_wrong_key_is_refused_like_none(keyed: Keyed, headers: dict[str, str]) -> None:
    assert keyed.api.client.get("/jobs", headers=headers).status_code == 401


def test_a_key_with_one_wrong_character_is_refused(keyed: Keyed) -> None:
    caller = keyed.caller()
    last = "A" if caller.secret[-1] != "A" else "B"
    headers = {"Authorization": f"Bearer {caller.secret[:-1]}{last}"}
    assert keyed.api.client.get("/jobs", headers=headers).status_code == 401


def test_either_header_carries_a_key(keyed: Keyed) -> None:
    caller = keyed.caller()
    headers = {"X-API-Key": caller.secret}
    assert keyed.api.client.get("/jobs", headers=headers).status_code == 200
    assert caller("GET", "/jobs", headers={"Authorization": f"bearer {caller.secret}"}).json


def test_a_body_is_not_read_before_the_key(keyed: Keyed) -> None:
    class Unread(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise AssertionError("the body was read")

    refused = keyed.api.client.post(
        "/jobs", input_stream=Unread(), content_type="application/json", content_length=100
    )
    assert refused.status_code == 401


def test_openai_clients_read_a_refusal_in_their_own_form(keyed: Keyed) -> None:
    refused = keyed.api.client.post("/v1/embeddings", json={"input": "a", "model": "tiny"})
    assert refused.status_code == 401
    assert refused.get_json()["error"]["code"] == "unauthorized"


def test_no_key_sees_cancels_or_lists_anothers_jobs(keyed: Keyed) -> None:
    first, second = keyed.caller(), keyed.caller()
    job = first.submit().get_json()["id"]
    for method, path in (
        ("GET", f"/jobs/{job}"),
        ("GET", f"/jobs/{job}/result"),
        ("GET", f"/jobs/{job}/events"),
        ("DELETE", f"/jobs/{job}"),
        ("POST", f"/jobs/{job}/cancel"),
    ):
        assert second(method, path).status_code == 404, path
    assert second("GET", "/jobs").get_json()["data"] == []
    assert first("GET", f"/jobs/{job}").get_json()["status"] == "queued"
    keyed.api.succeed(job, VECTOR)
    assert first("GET", f"/jobs/{job}/result").status_code == 200
    assert second("GET", f"/jobs/{job}/result").status_code == 404


def test_a_job_without_a_key_belongs_to_no_key(keyed: Keyed, redis_url: str) -> None:
    with api_stand(redis_url) as open_api:
        job = open_api.submitted()
    assert keyed.caller()("GET", f"/jobs/{job}").status_code == 404


def test_an_idempotency_key_is_its_owners_alone(keyed: Keyed) -> None:
    first, second = keyed.caller(), keyed.caller()
    headers = {"Idempotency-Key": "same"}
    one = first.submit("a", headers=headers)
    other = second.submit("b", headers=headers)
    assert one.status_code == other.status_code == 202
    assert one.get_json()["id"] != other.get_json()["id"]


def test_a_revoked_key_opens_nothing_within_seconds(keyed: Keyed) -> None:
    caller = keyed.caller(name="mine")
    keyed.file.revoke("mine")
    eventually(lambda: caller("GET", "/jobs").status_code == 401)


def test_an_expired_key_opens_nothing(keyed: Keyed) -> None:
    made = new_key(expires_at=time.time() - 1)
    keyed.file.add(made.key)
    probe = keyed.caller()
    assert probe("GET", "/jobs").status_code == 200
    headers = {"X-API-Key": made.secret}
    assert keyed.api.client.get("/jobs", headers=headers).status_code == 401


def test_a_file_that_breaks_leaves_the_last_good_keys(
    keyed: Keyed, caplog: pytest.LogCaptureFixture
) -> None:
    caller = keyed.caller()
    keyed.file.path.write_text("{")
    eventually(lambda: caller("GET", "/jobs").status_code == 200 and "stay as they" in caplog.text)
    assert caller("GET", "/jobs").status_code == 200


def test_a_file_that_could_not_be_read_for_a_while_is_read_when_it_can(
    keyed: Keyed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caller = keyed.caller()
    with monkeypatch.context() as patch:

        def unreadable(_: KeyFile) -> None:
            raise KeyFileError("not now")

        patch.setattr(KeyFile, "read", unreadable)
        content = keyed.file.path.read_text()
        keyed.file.path.write_text(content.replace('"keys": [', '"keys": [ '))
        eventually(lambda: caller("GET", "/jobs") and "not now" in caplog.text)
        keyed.file.revoke(caller.id)
        stamp = keyed.file.path.stat()
        eventually(lambda: caller("GET", "/jobs") and caplog.text.count("not now") == 2)
    # The file has not changed since the failed read.
    assert keyed.file.path.stat() == stamp
    eventually(lambda: caller("GET", "/jobs").status_code == 401)


@pytest.mark.parametrize("time", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_key_expires_at_a_time_that_there_is(time: float) -> None:
    with pytest.raises(ValueError, match="expires_at"):
        new_key(expires_at=time)


def test_a_linked_file_is_changed_where_it_lies(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    link.symlink_to(real)
    made = new_key()
    KeyFile(link).add(made.key)
    assert link.is_symlink()
    assert KeyFile(real).read().find(made.secret, time.time()) is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Invalid JSON"),
        ('{"version": 2, "keys": []}', "version"),
        ('{"keys": [{"id": "x"}]}', r"keys\.0\.id"),
        ('{"keys": [], "more": 1}', "more"),
    ],
)
def test_a_file_that_is_none_stops_the_api_by_name(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(KeyFileError, match=message) as raised:
        create_app(Settings(api_keys_file=path))
    assert "EMBEDQ_API_KEYS_FILE" in raised.value.message


def test_a_missing_file_stops_the_api(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be read: No such file"):
        create_app(Settings(api_keys_file=tmp_path / "keys.json"))


def test_requests_past_a_keys_minute_are_429_and_say_when(keyed: Keyed) -> None:
    caller = keyed.caller(requests_per_minute=2)
    first = caller.submit()
    assert first.status_code == 202
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["RateLimit-Policy"] == '"requests";q=2;w=60'
    assert caller.submit().status_code == 202
    refused = caller.submit()
    assert refused.status_code == 429
    assert problem(refused)["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["Retry-After"]) <= 30
    assert caller("GET", "/jobs").status_code == 200
    assert keyed.caller().submit().status_code == 202


def test_lists_have_a_minute_of_their_own(keyed: Keyed) -> None:
    caller = keyed.caller(requests_per_minute=2)
    for path in ("/jobs", "/v1/files"):
        caller("GET", path)
    refused = caller("GET", "/v1/batches")
    assert refused.status_code == 429
    assert refused.get_json()["error"]["code"] == "rate_limit_exceeded"
    assert caller("GET", "/jobs?limit=0").status_code == 429
    assert [caller.submit().status_code for _ in range(3)] == [202, 202, 429]
    assert caller("GET", "/v1/models").status_code == 200
    unbounded = keyed.caller(tokens_per_minute=1)
    assert {unbounded("GET", "/jobs").status_code for _ in range(5)} == {200}


def test_tokens_past_a_keys_minute_are_429_until_they_are_paid_for(keyed: Keyed) -> None:
    caller = keyed.caller(tokens_per_minute=100)
    # More than a whole minute's quota: it needs a full bucket, and leaves a debt of some minutes.
    assert caller("POST", "/jobs", json={"input": ["word " * 200] * 4}).status_code == 202
    refused = caller.submit()
    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    assert int(refused.headers["Retry-After"]) > 60


def test_a_shared_minute_is_exact_under_many_threads(redis_url: str, keyed: Keyed) -> None:
    quotas = Quotas(keyed.api.redis, keyed.api.settings.queue)
    with ThreadPoolExecutor(8) as pool:
        taken = list(
            pool.map(
                lambda _: quotas.take("k", 0, requests_limit=100, tokens_limit=None), range(200)
            )
        )
    granted = sum(one.granted for one in taken)
    # Less than a few are refilled meanwhile.
    assert 100 <= granted <= 110


def tokens_left(caller: Caller) -> int:
    return int(caller.submit("a").headers["x-ratelimit-remaining-tokens"])


def test_a_key_is_charged_what_the_model_read(keyed: Keyed) -> None:
    caller = keyed.caller(tokens_per_minute=100_000)
    job = caller.submit("a text").get_json()["id"]
    before = tokens_left(caller)
    keyed.api.succeed(job, VECTOR, tokens=20_000)
    # Less than a few thousand are refilled meanwhile.
    assert 17_000 <= before - tokens_left(caller) <= 20_100


def test_a_key_gets_back_what_was_estimated_too_high(keyed: Keyed) -> None:
    caller = keyed.caller(tokens_per_minute=1_000_000)
    job = caller.submit(["word " * 200] * 64).get_json()["id"]
    before = tokens_left(caller)
    keyed.api.succeed(job, VECTOR, tokens=70)
    assert tokens_left(caller) > before


def test_a_debt_is_not_forgotten_with_its_bucket(keyed: Keyed, redis_client: redis.Redis) -> None:
    caller = keyed.caller(tokens_per_minute=100)
    job = caller.submit("a text").get_json()["id"]
    keyed.api.succeed(job, VECTOR, tokens=1000)
    refused = caller.submit("a text")
    assert refused.status_code == 429
    # The debt is nine minutes' worth of tokens.
    assert int(refused.headers["Retry-After"]) > 400
    ttl = redis_client.pttl(keys.quota(keyed.api.settings.queue, caller.id))
    assert ttl > 400_000


def test_a_prompt_is_charged_before_each_text(keyed: Keyed) -> None:
    # So few that the refill is negligible.
    caller = keyed.caller(tokens_per_minute=20_000)
    before = tokens_left(caller)
    body = {"input": ["word"] * 64, "prompt": "query: " * 40}
    assert caller("POST", "/jobs", json=body).status_code == 202
    assert before - tokens_left(caller) >= 64 * 60


def test_bytes_waiting_are_bounded_by_key_however_few_tokens_they_count(keyed: Keyed) -> None:
    caller = keyed.caller(max_queued_mb=1)
    large = "x" * 300_000
    accepted = [caller.submit([large]).status_code for _ in range(3)]
    assert accepted == [202, 202, 202]
    refused = caller.submit([large])
    assert refused.status_code == 429
    assert problem(refused)["code"] == "quota_exceeded"
    assert "bytes" in problem(refused)["detail"]
    # Others are not affected.
    assert keyed.caller().submit([large]).status_code == 202


def test_a_key_without_a_limit_leaves_room_for_others(redis_url: str, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    greedy, modest = new_key(), new_key()
    file.add(greedy.key)
    file.add(modest.key)
    with api_stand(redis_url, api_keys_file=file.path, max_queued_bytes=1_000_000) as api:
        callers = [
            Caller(made.key.id, made.secret, api.app.test_client()) for made in (greedy, modest)
        ]
        found = [callers[0].submit(["x" * 200_000]).status_code for _ in range(4)]
        assert found == [202, 202, 429, 429]
        assert callers[1].submit(["x" * 200_000]).status_code == 202


def test_tokens_waiting_are_bounded_by_key_and_come_back(keyed: Keyed) -> None:
    caller = keyed.caller(max_queued_tokens=30)
    long = "word " * 15
    job = caller.submit(long).get_json()["id"]
    refused = caller.submit(long)
    assert refused.status_code == 429
    assert problem(refused)["code"] == "quota_exceeded"
    assert int(refused.headers["Retry-After"]) >= 1
    assert keyed.caller(max_queued_tokens=30).submit(long).status_code == 202
    keyed.api.succeed(job, VECTOR)
    assert caller.submit(long).status_code == 202


def test_files_of_one_key_are_not_anothers(keyed: Keyed) -> None:
    first, second = keyed.caller(), keyed.caller()
    line = {"custom_id": "1", "method": "POST", "url": "/v1/embeddings"}
    content = orjson.dumps(line | {"body": {"model": "tiny", "input": "a"}})
    data = {"purpose": "batch", "file": (io.BytesIO(content), "lines.jsonl")}
    uploaded = first("POST", "/v1/files", data=data)
    assert uploaded.status_code == 200, uploaded.data
    name = uploaded.get_json()["id"]
    assert first("GET", f"/v1/files/{name}").status_code == 200
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert second(method, f"/v1/files/{name}{path}").status_code == 404
    assert second("GET", "/v1/files").get_json()["data"] == []


def embedq(*arguments: str, path: Path) -> Any:
    return CliRunner().invoke(main, ["keys", *arguments], env={"EMBEDQ_API_KEYS_FILE": str(path)})


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    made = embedq("add", "--name", "search", "--requests-per-minute", "60", path=path)
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    assert secret not in path.read_text()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116
    found = KeyFile(path).read().find(secret, time.time())
    assert found is not None
    assert found.requests_per_minute == 60
    listed = embedq("list", path=path).stdout
    assert "search" in listed
    assert "60 requests/min" in listed
    assert secret not in listed
    assert embedq("revoke", "search", path=path).exit_code == 0
    assert KeyFile(path).read().find(secret, time.time()) is None
    assert "revoked" in embedq("list", path=path).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "--expires", "soon"), "'soon' is neither"),
        (("add", "--expires", "2001-01-01"), "has passed"),
        (("add", "--expires", "999999999w"), "beyond the year 9999"),
        (("add", "--tokens-per-minute", "0"), "x>=1"),
        (("revoke", "nobody"), "no key is called 'nobody'"),
    ],
)
def test_what_a_command_cannot_do_is_told(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = embedq(*arguments, path=tmp_path / "keys.json")
    assert done.exit_code == 2
    assert message in done.output
