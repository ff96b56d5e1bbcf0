"""Continuous batching over texts: jobs go in, vectors come out, full batches in between.

In reading order:

- `job`         a job under way: its texts, what is tokenised, what has come back
- `pooled`      its texts that are read in windows, and the mean of their vectors
- `sink`        who is told what becomes of jobs
- `windows`     a text beyond the model's limit as several within it
- `tokenising`  texts into tokens, of several jobs in turn
- `shares`      the waiting texts of one lane: a share for each tenant, and of that for each job
- `schedule`    which waiting texts make the next batch; no clock, lock or device
- `batch`       pieces of jobs joined for the model, and its rows given back to them
- `forward`     one batch through the model, whatever one of its texts does to it
- `counts`      what is counted of batches and of the tokenizer
- `room`        how many tokens wait and how many bytes are held, and how many more may come
- `outbox`      what the writer has to tell
- `threads`     started, watched and joined together
- `isolation`   a job that workers may have died of runs while every other thread rests
- `arrivals`    jobs to be looked up in the cache, where there is one
- `backlog`     the jobs under way and what threads hand to one another, behind one lock
- `tokeniser`   one thread's calls of the tokenizer
- `composer`    what the device runs next: cut, admitted, each text once
- `recall`      what the cache has is looked up, what it has not is kept
- `encoding`    one thread's batches: composed, run, counted
- `core`        the engine itself: tokenise, encode, write
"""

from worker.engine.core import Engine
from worker.engine.job import Job
from worker.engine.sink import Sink

__all__ = ["Engine", "Job", "Sink"]
