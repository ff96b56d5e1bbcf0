"""Spans of jobs: their trace, and no cost without a collector."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.processes import run_python
from worker.contract import messages
from worker.metrics.spans import Traces
from worker.metrics.traces import wanted
from worker.pool.in_flight import InFlightJob
from worker.pool.job_metrics import ended_by
from worker.pool.spans import JobSpans

COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> Iterator[Traces]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Traces(provider)
    provider.shutdown()


def in_flight(job_id: str, headers: dict[str, Any]) -> Any:
    """The attributes of a running job that spans use."""
    made: Any = object.__new__(InFlightJob)
    made.id = job_id
    made.trace = None
    made.submitted_at = messages.submission_time(headers)
    made.request = SimpleNamespace(request_dict=headers)
    return made


def submitted(traces: Traces, spans: JobSpans, job_id: str) -> Any:
    """The view of a job that a request of its own submitted."""
    request = traces.begin("POST", {})
    headers = messages.new_headers()
    request.end("POST /jobs", 202, {})
    made = in_flight(job_id, headers)
    spans.open(made)
    return made


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def ids(span: Any) -> tuple[int, int]:
    context = getattr(span, "context", span)
    return context.trace_id, context.span_id


def jobs_of(*in_flight_jobs: Any) -> list[Any]:
    return [SimpleNamespace(owner=one) for one in in_flight_jobs]


def test_every_step_of_a_job_is_in_the_trace_of_its_request(
    traces: Traces, exporter: InMemorySpanExporter
) -> None:
    spans = JobSpans(traces)
    job = submitted(traces, spans, "one")
    spans.started([job])
    spans.tokenised(jobs_of(job), 0.001, 1)
    spans.encoded(jobs_of(job), 0.25, 1, 7)
    spans.written([job], 0.002, ended_by(KeyError("k")))
    (request,) = named(exporter, "POST /jobs")
    finished = exporter.get_finished_spans()
    assert [span.name for span in finished[1:]] == ["queued", "tokenise", "forward", "write"]
    for span in finished[1:]:
        assert span.parent is not None
        assert ids(span.parent) == ids(request)
        assert span.attributes is not None
        assert span.attributes["embedq.job_id"] == "one"
        assert not span.links
    forward = finished[3]
    assert forward.attributes is not None
    assert forward.attributes["embedq.tokens"] == 7
    assert forward.end_time is not None
    assert forward.start_time is not None
    assert forward.end_time - forward.start_time == 250_000_000
    write = finished[4]
    assert write.attributes is not None
    assert (write.attributes["embedq.outcome"], write.attributes["embedq.code"]) == (
        "failed",
        "other",
    )


def test_a_batch_of_many_jobs_is_linked_to_all_of_them(
    traces: Traces, exporter: InMemorySpanExporter
) -> None:
    spans = JobSpans(traces)
    jobs = [submitted(traces, spans, f"job {n}") for n in range(3)]
    untraced = in_flight("untraced", {})
    spans.open(untraced)
    of_a_caller = SimpleNamespace(owner=object())
    spans.encoded([*jobs_of(*jobs, untraced), of_a_caller], 0.1, 5, 50)
    (batch,) = named(exporter, "forward batch")
    assert batch.parent is None
    assert {ids(link.context) for link in batch.links} == {ids(one.trace) for one in jobs}
    own = named(exporter, "forward")
    assert {ids(span.parent) for span in own} == {ids(one.trace) for one in jobs}
    for span in own:
        assert [ids(link.context) for link in span.links] == [ids(batch)]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": "nonsense"},
        {"traceparent": 7},
        {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"},
    ],
)
def test_a_job_that_nobody_traces_makes_no_span(
    traces: Traces, exporter: InMemorySpanExporter, headers: dict[str, Any]
) -> None:
    spans = JobSpans(traces)
    job = in_flight("one", {messages.SUBMITTED_AT: time.time(), **headers})
    spans.open(job)
    spans.started([job])
    spans.encoded(jobs_of(job), 0.1, 1, 1)
    spans.written([job], 0.1)
    assert exporter.get_finished_spans() == ()


def test_a_request_goes_on_in_the_trace_of_its_caller(
    traces: Traces, exporter: InMemorySpanExporter
) -> None:
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    request = traces.begin("GET", {"traceparent": caller})
    assert messages.new_headers()["traceparent"].startswith(caller[:36])
    request.end("GET /jobs", 500, {})
    assert "traceparent" not in messages.new_headers()
    (span,) = exporter.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == caller[3:35]
    assert not span.status.is_ok


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        (COLLECTOR, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        (COLLECTOR | {"OTEL_SDK_DISABLED": "True"}, False),
        (COLLECTOR | {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_made_where_the_environment_names_a_collector(
    environ: dict[str, str], expected: bool
) -> None:
    assert wanted(environ) is expected


def test_without_a_collector_nothing_is_imported_that_makes_or_sends_spans() -> None:
    # redis-py imports OpenTelemetry's metrics if they are installed.
    program = (
        "import sys, api, worker.pool, worker.tasks; from worker.contract import messages; "
        "client = api.create_app().test_client(); client.get('/healthz'); messages.new_headers(); "
        "from worker.pool.spans import JobSpans; assert JobSpans.of_environment() is None; "
        "print([name for name in sys.modules if name.startswith("
        "('opentelemetry.sdk.trace', 'opentelemetry.exporter'))])"
    )
    ran = run_python("-c", program)
    assert ran.stdout.strip() == "[]", ran.stderr


def test_a_missing_extra_is_said_once_and_stops_nothing() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None; "
        "from worker.metrics.traces import traces_of; "
        "assert traces_of('api') is traces_of('api') is None"
    )
    ran = run_python("-c", program, **COLLECTOR)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("embedq[otel]") == 1
