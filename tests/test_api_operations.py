"""Health, readiness, metrics, the headers of every answer, and the OpenAPI document."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api import create_app, dialects
from api.backend import EXTENSION
from api.errors import STATUS_OF
from tests.api_stand import MODEL, ApiStand, api_stand, problem
from tests.processes import run_python
from worker.contract import keys
from worker.contract.jobs import JobBody
from worker.contract.settings import Settings
from worker.store.api_keys import KeyFile, new_key
from worker.store.worker_registry import SILENCE


@pytest.fixture
def api(redis_url: str) -> Iterator[ApiStand]:
    with api_stand(redis_url) as stand:
        yield stand


def test_importing_the_api_loads_no_torch_and_connects_nowhere() -> None:
    program = (
        "import sys, api; api.create_app(); "
        "print([name for name in sys.modules if name in "
        "('torch', 'transformers', 'sentence_transformers', 'worker.tasks')])"
    )
    ran = run_python("-W", "error", "-c", program)
    assert ran.stdout.strip() == "[]", ran.stderr


def test_ready_means_a_worker_that_makes_progress(api: ApiStand) -> None:
    response = api.client.get("/readyz")
    assert response.status_code == 200
    assert response.get_json() == {"status": "ready", "workers": 1, "models": [MODEL.name]}
    api.worker(silent=SILENCE + 1)
    response = api.client.get("/readyz")
    assert response.status_code == 503
    assert problem(response)["code"] == "no_worker"
    api.redis.delete(keys.workers(api.settings.queue))
    assert api.client.get("/readyz").status_code == 503
    assert api.client.get("/healthz").status_code == 200


def test_metrics_count_requests_by_pattern_and_tell_what_waits(api: ApiStand) -> None:
    job_id = api.submitted(["a", "b"])
    api.client.get(f"/jobs/{job_id}")
    api.client.get("/nothing")
    text = api.client.get("/metrics").text
    assert 'embedq_http_requests_total{method="POST",route="/jobs",status="202"} 1.0' in text
    assert 'route="/jobs/<job_id>",status="200"' in text
    assert 'route="unknown",status="404"' in text
    assert job_id not in text
    assert "embedq_jobs_accepted_total 1.0" in text
    assert "embedq_texts_accepted_total 2.0" in text
    assert "embedq_workers 1.0" in text
    assert "embedq_redis_up 1.0" in text
    assert f"embedq_queued_tokens {api.ledger()['tokens']}.0" in text


def test_a_submission_that_an_earlier_job_answers_is_counted(api: ApiStand) -> None:
    for _ in range(3):
        api.submit("a text", headers={"Idempotency-Key": "once"})
    text = api.client.get("/metrics").text
    assert "embedq_jobs_joined_total 2.0" in text
    assert "embedq_jobs_accepted_total 1.0" in text


def test_callers_cannot_make_up_series(api: ApiStand) -> None:
    for word in ("BREW", "WHEN"):
        api.client.open("/jobs", method=word)
    text = api.client.get("/metrics").text
    assert 'method="other",route="unknown",status="405"} 2.0' in text
    assert "BREW" not in text


@pytest.mark.parametrize("path", ["/healthz", "/jobs", "/jobs/x", "/nothing", "/metrics"])
def test_no_answer_is_sniffed_or_cached(api: ApiStand, path: str) -> None:
    headers = api.client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


@pytest.fixture
def document(api: ApiStand) -> dict[str, Any]:
    response = api.client.get("/openapi.json")
    assert response.status_code == 200
    found: dict[str, Any] = response.get_json()
    return found


def test_the_document_has_every_route_and_no_other(api: ApiStand, document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    served = {
        (re.sub(r"<[\w:]+>", "{id}", rule.rule), method.lower())
        for rule in api.app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS") and rule.endpoint != "page.send_asset"
    }
    documented = {
        (path, method) for path, methods in document["paths"].items() for method in methods
    }
    assert documented == served


def test_the_document_has_every_option_and_every_code(document: dict[str, Any]) -> None:
    request = document["components"]["schemas"]["JobRequest"]
    assert request["properties"].keys() == JobBody.model_fields.keys()
    assert request["required"] == ["input"]
    assert request["additionalProperties"] is False
    described = str(document["paths"])
    # Flask's own answers on a path are in no operation's list.
    for code in STATUS_OF.keys() - {"method_not_allowed"}:
        assert f"`{code}`" in described, code


def test_the_documented_errors_of_v1_are_in_openais_shape(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        if path.startswith("/v1/"):
            for operation in methods.values():
                for status, response in operation["responses"].items():
                    if status >= "400":
                        assert "ErrorDocument" in str(response["content"]["application/json"])


def test_every_reference_of_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                yield from references(child)

    found = set(references(document))
    assert found
    for reference in found:
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_an_answer_has_the_fields_of_its_schema(api: ApiStand, document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    job = api.submit().get_json()
    assert job.keys() == schemas["Job"]["properties"].keys()
    assert job["links"].keys() == schemas["Links"]["properties"].keys()
    found = problem(api.client.get("/nothing"))
    assert found.keys() <= schemas["ProblemDocument"]["properties"].keys()


TOY = '''
from typing import Any

from flask import Blueprint, Response
from pydantic import BaseModel

from api.dialects import Dialect
from api.errors import problem_response
from api.operations import Answer, OperationGroup, Operation, path_parameter, problem_answer
from api.requests import current_request, read_json
from api.responses import json_response

blueprint = Blueprint("toy", __name__, url_prefix="/toy")
TOY = OperationGroup("Toy", problem_answer)


class ToyRequest(BaseModel):
    """A name."""

    name: str


class ToyDocument(BaseModel, title="Toy"):
    """A toy."""

    id: str
    name: str


@blueprint.put("/toys/<toy_id>")
@Operation(
    TOY,
    {200: Answer("The toy.", ToyDocument)},
    errors=[422],
    parameters=[path_parameter("The toy's id.")],
    body=ToyRequest,
)
def put_toy(toy_id: str) -> Response:
    """Name a toy."""
    body: Any = read_json(current_request(), 100)
    return json_response({"id": toy_id, "name": body["name"]})


def mark(headers: Any, began: float) -> None:
    headers["X-Toy"] = "yes"


DIALECT = Dialect(blueprint, problem_response, mark)
'''


def test_a_dialect_is_one_file(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(dialects, "__path__", [*dialects.__path__, str(tmp_path)])
    app = create_app(Settings(broker_url=redis_url, result_backend=redis_url))
    monkeypatch.delitem(sys.modules, "api.dialects.toy")
    client = app.test_client()
    response = client.put("/toy/toys/1", json={"name": "bear"})
    assert response.get_json() == {"id": "1", "name": "bear"}
    assert client.get("/toy/none").headers["X-Toy"] == "yes"
    assert "X-Toy" not in client.get("/healthz").headers
    found = client.get("/openapi.json").get_json()
    app.extensions[EXTENSION].close()
    operation = found["paths"]["/toy/toys/{id}"]["put"]
    assert operation["summary"] == "Name a toy"
    assert operation["tags"] == ["Toy"]
    assert operation["responses"].keys() == {"200", "400", "401", "403", "408", "422", "500"}
    assert found["components"]["schemas"]["Toy"]["required"] == ["id", "name"]
    assert "ToyRequest" in found["components"]["schemas"]
    assert {"name": "Toy"} in found["tags"]


def test_a_route_that_declares_no_operation_needs_a_key_and_is_in_no_document(
    redis_url: str, tmp_path: Path
) -> None:
    keys_file = tmp_path / "keys.json"
    KeyFile(keys_file).add(new_key().key)
    app = create_app(
        Settings(broker_url=redis_url, result_backend=redis_url, api_keys_file=keys_file)
    )

    @app.get("/undeclared")
    def undeclared() -> str:
        return "hello"

    client = app.test_client()
    assert client.get("/undeclared").status_code == 401
    assert "/undeclared" not in client.get("/openapi.json").get_json()["paths"]
    app.extensions[EXTENSION].close()
