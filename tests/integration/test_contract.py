"""The service answers every request as its OpenAPI document states, and never with a 5xx."""

from __future__ import annotations

from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.conftest import Service
from tests.documented import DOCUMENT
from tests.processes import eventually

#: A request that fits the schema may still be refused: ids, prompts and sizes are not in it.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 30
#: Characters. gunicorn refuses a longer request line before the application sees it.
LONGEST_ADDRESS = 4000
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]


def refusable(path: str, method: str) -> bool:
    """Whether any part of a request can break its schema; a part of the path cannot."""
    operation = DOCUMENT["paths"][path][method]
    places = {parameter["in"] for parameter in operation.get("parameters", [])}
    return "requestBody" in operation or bool(places - {"path"})


@pytest.fixture(scope="module")
def schema(service: Service) -> Any:
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


def send(schema: Any, path: str, method: str, mode: GenerationMode) -> None:
    @settings(
        max_examples=EXAMPLES,
        # The same requests each time: a failure here is reproducible everywhere.
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        response = case.call()
        if len(response.request.url) < LONGEST_ADDRESS:
            case.validate_response(response, checks=CHECKS)

    run()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_requests_that_fit_the_document_are_answered_as_it_says(
    schema: Any, path: str, method: str
) -> None:
    send(schema, path, method, GenerationMode.POSITIVE)


@pytest.mark.parametrize(("path", "method"), [one for one in OPERATIONS if refusable(*one)])
def test_requests_that_break_the_document_are_answered_as_it_says(
    schema: Any, path: str, method: str
) -> None:
    send(schema, path, method, GenerationMode.NEGATIVE)


def test_the_service_is_as_ready_afterwards_as_before(service: Service) -> None:
    eventually(lambda: requests.get(f"{service.url}/readyz", timeout=30).ok, 60)
    assert service.worker.running
