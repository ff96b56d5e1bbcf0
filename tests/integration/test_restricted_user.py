"""A Redis user with only the rights that the documentation lists."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import requests

from tests.processes import ROOT, Api, Processes, ValkeyServer, start_api, start_worker
from worker.contract import keys


def documented() -> list[str]:
    """The rules of `ACL SETUSER` on the page, after the password."""
    page = (ROOT / "docs" / "operations.md").read_text()
    found = re.search(r"ACL SETUSER embedq on >PASSWORD (.*)", page)
    assert found is not None
    return found[1].split()


def test_the_documented_rights_suffice_for_a_worker_and_the_api(
    processes: Processes, valkey_server: Callable[..., ValkeyServer]
) -> None:
    server = valkey_server(persistent=False)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "embedq", "on", ">secret", *documented())
        url = server.url.replace("redis://", "redis://embedq:secret@")
        env = {"EMBEDQ_FILES": str(processes.folder / "files")}
        worker = start_worker(processes, url, env=env)
        api = start_api(processes, url, env=env)
        client.lpush("embedq", "not a message")
        for path, body in (
            ("/jobs?wait=60", {"input": ["one", "two"]}),
            ("/v1/embeddings", {"input": "three", "model": "all-MiniLM-L6-v2"}),
        ):
            assert post(api, path, body).status_code == 200
        for path in ("/readyz", "/status", "/metrics", "/jobs"):
            assert requests.get(api.url + path, timeout=30).status_code == 200
        assert worker.stop() == 0
        assert client.llen(keys.dead_letters("embedq")) == 1
        denied = cast("list[dict[str, Any]]", client.acl_log())
        assert not denied, denied


def post(api: Api, path: str, body: dict[str, Any]) -> requests.Response:
    return requests.post(api.url + path, json=body, timeout=90)
