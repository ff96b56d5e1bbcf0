"""Continuous batching of texts: jobs enter, full batches run, vectors leave.

In reading order, first the job:

- `job`: a running job, its texts, tokens and vectors
- `callbacks`: the completion of jobs, and the notifications before it
- `chunks`: long texts that are encoded in chunks, and the mean of their vectors
- `vectors`: normalize vectors, cut their dimensions

then the stages, in the order in which a job passes them:

- `cache`: read vectors of earlier texts, and add new ones
- `tokenize`: tokenize texts of several jobs in turn
- `scheduler`: the running jobs, the queues between the stages, and the choice of each batch
- `slot`: encode one batch after another; a thread for each slot of the device
- `write`: complete jobs

their parts:

- `queue`: the hand-over between two stages, with lanes and a capacity
- `isolation`: run a poison job while every other thread rests
- `fair_queue`: the scheduling algorithm: start-time fair queueing; no clock, lock or device
- `occupancy`: the idle slots, and the batches of the others
- `batch`: join pieces of jobs, and return rows to their jobs
- `deduplicate`: encode equal texts of a batch once
- `encode`: run one batch, bisect failing texts, handle a full device

and the whole:

- `metrics`: counters of batches and of the tokenizer
- `threads`: start, watch and join the threads
- `engine`: the stages and their threads
"""

from worker.engine.callbacks import JobCallbacks
from worker.engine.engine import Engine
from worker.engine.job import Job

__all__ = ["Engine", "Job", "JobCallbacks"]
