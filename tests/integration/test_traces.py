"""Traces of a whole service, as received by a collector."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.conftest import running
from tests.processes import ValkeyServer, eventually, free_port, start_api, start_worker

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector:
    """Receives spans over OTLP; stores them with the name of their service."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector._keep(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def _keep(self, received: Any) -> None:
        for part in received.resource_spans:
            facts = {one.key: one.value.string_value for one in part.resource.attributes}
            for scope in part.scope_spans:
                self._spans += [(facts["service.name"], span) for span in scope.spans]

    def of_trace(self, trace_id: str) -> dict[tuple[str, str], Any]:
        """Spans by service and name."""
        found = list(self._spans)
        return {
            (service, span.name): span for service, span in found if span.trace_id.hex() == trace_id
        }

    def text(self) -> str:
        return str(self._spans)


@contextmanager
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        collector.server.shutdown()
        thread.join()
        collector.server.server_close()


@pytest.mark.integration
def test_a_trace_leads_from_the_request_through_the_queue_to_the_worker() -> None:
    with collector() as received, running() as processes:
        server = ValkeyServer(processes, processes.folder / "data", free_port(), persistent=False)
        server.start()
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": received.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        start_worker(processes, server.url, env=env)
        api = start_api(processes, server.url, "-c", "python:api.serving", env=env)
        answer = requests.post(
            f"{api.url}/jobs?wait=30",
            json={"input": ["heliotrope", "a text"]},
            headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
            timeout=60,
        )
        assert answer.status_code == 200
        expected = {("embedq-api", "POST /jobs")} | {
            ("embedq-worker", step) for step in ("queued", "tokenise", "forward", "write")
        }
        eventually(lambda: expected <= received.of_trace(TRACE).keys(), 30, message=received.text)
        found = received.of_trace(TRACE)
        assert found.keys() == expected
        request = found["embedq-api", "POST /jobs"]
        assert request.parent_span_id.hex() == "b7ad6b7169203331"
        job_id = answer.json()["id"]
        for (_, name), span in found.items():
            if name != "POST /jobs":
                assert span.parent_span_id == request.span_id
                facts = {one.key: one.value for one in span.attributes}
                assert facts["embedq.job_id"].string_value == job_id
        assert "heliotrope" not in received.text()
