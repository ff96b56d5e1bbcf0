"""How Celery hands requests over, and how they end.

In reading order:

- `requests`  one request of `embed`, without its texts where people look
- `loop`      calls from other threads onto the thread of Celery's event loop
- `threads`   tasks other than `embed`, and whatever else may block
- `outcomes`  what becomes of jobs: in bulk, or through Celery's own tracer
- `taskpool`  the pool itself
"""

from worker.pool.taskpool import TaskPool

__all__ = ["TaskPool"]
