"""Metrics, traces and logs, for the API and the worker.

In reading order:

- `registry`: every metric of a worker, with its meaning and its format in the heartbeat
- `recorder`: counters and histograms of a worker
- `traces`, `spans`: OpenTelemetry, loaded only if a collector is configured
- `logs`: log records as JSON
- `redaction`: remove secrets from log records
"""
