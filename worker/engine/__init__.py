"""Continuous batching over texts: jobs go in, vectors come out, full batches in between.

In reading order:

- `job`       a job under way: its texts, what is tokenised, what has come back
- `schedule`  which waiting texts make the next batch; no clock, lock or device
- `forward`   one batch through the model, whatever one of its texts does to it
- `core`      the threads: tokenise, encode, write
"""

from worker.engine.core import Engine, Sink
from worker.engine.job import Job

__all__ = ["Engine", "Job", "Sink"]
