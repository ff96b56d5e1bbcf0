"""Continuous batching of texts: jobs enter, full batches run, vectors leave.

In reading order:

- `job`: a running job, its texts, tokens and vectors
- `pooled`: long texts that are encoded in windows, and their mean vectors
- `sink`: the receiver of the engine's events
- `windows`: split a text beyond the model's limit
- `tokenising`: tokenize texts of several jobs in turn
- `fair_queue`: the scheduling algorithm: start-time fair queueing; no clock, lock or device
- `batch`: join pieces of jobs, and return rows to their jobs
- `repeats`: encode equal texts of a batch once
- `forward`: run one batch, and isolate texts that fail
- `counts`: counters of batches and of the tokenizer
- `room`: waiting tokens, held bytes, and remaining capacity
- `outbox`: events for the writer thread
- `occupancy`: the idle slots, and the batches of the others
- `threads`: start, watch and join the threads
- `isolation`: run a suspected job while every other thread rests
- `arrivals`: jobs to look up in the cache
- `backlog`: the state that the threads share, behind one lock
- `tokeniser`: the loop of the tokenizer thread
- `recall`: read vectors from the cache and add new ones
- `slot`: the loop of one slot: take a batch, encode it, pass the vectors on
- `core`: the engine: tokenize, encode, write
"""

from worker.engine.core import Engine
from worker.engine.job import Job
from worker.engine.sink import Sink

__all__ = ["Engine", "Job", "Sink"]
