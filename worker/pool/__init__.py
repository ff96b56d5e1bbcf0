"""The Celery pool of the worker: takes requests over and completes their jobs.

In reading order:

- `consumer`: bound the number of fetched messages, and refuse malformed ones
- `request`: a request of `embed`, without its texts in logs and events
- `failures`: store failures that neither the engine nor a task can store
- `parking`: return messages that must wait to Redis
- `strategy`: turn a message of `embed` into a request
- `in_flight`: the pool's view of a running job
- `job_intake`: parse jobs and submit them to the engine
- `pool`: the pool
- `loop`: call functions on the thread of Celery's event loop
- `threads`: daemon threads for blocking calls
- `other_tasks`: run tasks other than `embed`
- `poison_tasks`: run redelivered tasks other than `embed` one at a time
- `direct_calls`: `embed` called as a function inside the worker
- `outcomes`: the engine's sink, which completes simple jobs in bulk
- `result_writer`: complete many jobs in one script, with retries while Redis is away
- `celery_tracer`: complete the other jobs through Celery's tracer
- `limits`: time limits of jobs
- `job_metrics`: counters of completed jobs and their duration
- `metrics`: collect all metrics of this worker
- `spans`: OpenTelemetry spans of jobs
- `poison_jobs`: count the crashes of redelivered jobs
- `shutdown_renewal`: renew leases while the worker stops
- `heartbeat`: write the worker's heartbeat
"""

from worker.pool.pool import TaskPool

__all__ = ["TaskPool"]
