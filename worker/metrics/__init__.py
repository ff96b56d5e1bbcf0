"""Metrics, traces and logs, for the API and the worker.

In reading order:

- `registry`: every metric of a worker, with its meaning and its format in the heartbeat
- `histogram`: a histogram that one thread writes and any thread reads
- `traces`, `spans`: OpenTelemetry, loaded only if a collector is configured
- `logs`: log records as JSON
- `redaction`: remove secrets from log records
"""
