"""Whether a collector is configured. Without one, OpenTelemetry is not imported."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from worker.metrics import redaction

if TYPE_CHECKING:
    from worker.metrics.spans import Traces

logger = logging.getLogger(__name__)

#: Any of them names a collector (opentelemetry.io/docs/specs/otel/protocol/exporter).
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: Headers of a message that carry its trace (www.w3.org/TR/trace-context).
TRACE_HEADERS = ("traceparent", "tracestate")


@cache
def traces_of(part: str) -> Traces | None:
    """The traces of this process, which is a `part` of the service; None without a collector.

    The first call starts a thread that exports, so it belongs into the process that does the work.
    """
    if not wanted(os.environ):
        return None
    for name in _ENDPOINTS:
        # The exporter logs the address that does not answer.
        redaction.protect(os.environ.get(name, ""))
    try:
        from worker.metrics.spans import Traces
    except ImportError as error:
        logger.warning("No traces without OpenTelemetry (%s): install embedq[otel]", error.name)
        return None
    return Traces.exporting(part)


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment names a collector and does not switch traces off. Pure."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() != "otlp":
        return False
    return any(environ.get(name, "").strip() for name in _ENDPOINTS)


def carried() -> dict[str, Any]:
    """Headers for a message that is sent now: the caller's current trace, if any."""
    if "opentelemetry.sdk.trace" not in sys.modules:
        # Without the SDK, this process cannot have begun a trace.
        return {}
    from worker.metrics.spans import current_headers

    return current_headers()
