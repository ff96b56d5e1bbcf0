"""Shared by the API and the worker, without I/O: settings, jobs, keys and wire formats.

In reading order:

- `settings`, `setting_values`, `hosts`: the environment as one frozen object; trusted hosts
- `backends`: the registry of backends
- `errors`: errors with the code that users see
- `models`: the properties of a loaded model
- `jobs`, `lanes`, `estimates`: a validated job, its lane and its expected cost
- `outcomes`, `results`: the outcome of a job, and the formats in which it is stored
- `keys`: every Redis key
- `messages`: a job as a Celery message
- `backoff`, `bisection`: retry with growing pauses; find the items that make a call fail
- `app`: the Celery application and its configuration
"""
