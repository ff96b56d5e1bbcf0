"""How Celery hands requests over, and how they end.

In reading order:

- `consumer`  messages that nobody can run, and how much is fetched
- `requests`  one request of `embed`, without its texts where people look
- `failures`  what neither the engine nor a task can fail itself
- `parking`   messages that have to wait, in Redis
- `strategy`  how a message becomes one, and what of Celery's way it can do without
- `tickets`   what is kept of it until it has ended
- `taskpool`  the pool itself
- `loop`      calls from other threads onto the thread of Celery's event loop
- `threads`   threads for whatever may block
- `others`    tasks other than `embed`
- `isolation` those of them that workers may have died of
- `callers`   `embed` called as a plain function in the worker
- `outcomes`  what becomes of jobs: in bulk …
- `result_writer` … by one script for many, again and again while Redis is away,
- `tracing`   … or through Celery's own tracer
- `limits`    jobs that run for too long
- `counts`    how jobs end and how long they take, counted
- `figures`   everything counted, put together
- `spans`     what becomes of jobs, for OpenTelemetry
- `keeping`   leases while the worker stops
- `suspects`  jobs that workers may have died of
"""

from worker.pool.taskpool import TaskPool

__all__ = ["TaskPool"]
