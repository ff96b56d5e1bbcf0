"""Spans of requests and jobs; the only module that imports OpenTelemetry."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from worker.metrics.traces import TRACE_HEADERS

_PROPAGATOR = TraceContextTextMapPropagator()
#: Links of one span; the SDK would drop the oldest past its own bound, of the same size.
_LINKS = 128

Attributes = Mapping[str, str | int | float]


class Traces:
    """Makes spans. Any thread may; a thread of the SDK's exports them, the last ones at exit."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("embedq")

    @classmethod
    def exporting(cls, part: str) -> Traces:
        """To the collector of the environment's `OTEL_*` variables, as the service `embedq-part`.

        `OTEL_SERVICE_NAME` and the variables of sampling and batching have their usual meaning.
        """
        named = "OTEL_SERVICE_NAME" in os.environ
        resource = Resource.create({} if named else {"service.name": f"embedq-{part}"})
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def begin(self, name: str, headers: Mapping[str, str]) -> RequestSpan:
        """Begin the span of a request, in the trace that its headers name or a new one."""
        parent = _PROPAGATOR.extract(_trace_headers(headers))
        return RequestSpan(self._tracer.start_span(name, context=parent, kind=SpanKind.SERVER))

    def record(
        self,
        name: str,
        parent: SpanContext | None,
        seconds: float,
        attributes: Attributes,
        links: Sequence[SpanContext] = (),
        *,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> SpanContext:
        """Record a span of `seconds` that ends now; without a parent it begins a new trace."""
        now = time.time_ns()
        span = self._tracer.start_span(
            name,
            context=trace.set_span_in_context(
                NonRecordingSpan(parent) if parent is not None else trace.INVALID_SPAN
            ),
            kind=kind,
            attributes=attributes,
            links=[Link(one) for one in links[:_LINKS]],
            start_time=now - int(seconds * 1e9),
        )
        span.end(now)
        return span.get_span_context()

    def sender(self, headers: Mapping[str, Any]) -> SpanContext | None:
        """The recorded span that sent a message, or None."""
        carrier = _trace_headers(headers)
        if not carrier:
            return None
        found = trace.get_current_span(_PROPAGATOR.extract(carrier)).get_span_context()
        return found if found.is_valid and found.trace_flags.sampled else None


class RequestSpan:
    """The span of one request, current until it ends. Belongs to the request's thread."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token = context.attach(trace.set_span_in_context(span))

    def end(self, name: str, status: int, attributes: Attributes) -> None:
        """End the span, once. `name` has the route, which was not known at the beginning."""
        self._span.update_name(name)
        self._span.set_attributes({"http.response.status_code": status, **attributes})
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()
        context.detach(self._token)


def current_headers() -> dict[str, Any]:
    """Headers that carry the current trace to another process; empty without a trace."""
    headers: dict[str, Any] = {}
    _PROPAGATOR.inject(headers)
    return headers


def _trace_headers(headers: Mapping[str, Any]) -> dict[str, str]:
    given = ((name, headers.get(name)) for name in TRACE_HEADERS)
    return {name: value for name, value in given if isinstance(value, str)}
