"""The Celery pool of the worker: takes requests over and completes their jobs.

In reading order:

- `consumer`: bound the number of fetched messages, and refuse malformed ones
- `requests`: a request of `embed`, without its texts in logs and events
- `failures`: store failures that neither the engine nor a task can store
- `parking`: return messages that must wait to Redis
- `strategy`: turn a message of `embed` into a request
- `tickets`: the pool's state of one request
- `taskpool`: the pool
- `loop`: call functions on the thread of Celery's event loop
- `threads`: daemon threads for blocking calls
- `others`: run tasks other than `embed`
- `isolation`: run redelivered tasks other than `embed` one at a time
- `callers`: `embed` called as a function inside the worker
- `outcomes`: the engine's sink, which completes simple jobs in bulk
- `result_writer`: complete many jobs in one script, with retries while Redis is away
- `tracing`: complete the other jobs through Celery's tracer
- `limits`: time limits of jobs
- `counts`: counters of completed jobs and their duration
- `figures`: collect all counters
- `spans`: OpenTelemetry spans of jobs
- `keeping`: renew leases while the worker stops
- `suspects`: count the crashes of redelivered jobs
"""

from worker.pool.taskpool import TaskPool

__all__ = ["TaskPool"]
