"""Kill everything under load and count what became of every accepted job.

`python -m bench.soak` (`make soak`) starts a Valkey with an append-only file, two workers and the
API as processes of their own, submits jobs over REST and by direct calls, and meanwhile kills
workers, connections and the Valkey, and stops a worker past its lease. In the end it reads the
outcome of each accepted job and compares the vectors.

- `stage`  the processes, and what can be done to them
- `load`   who submits, and what was accepted
- `chaos`  what happens to the processes, by a seed
- `audit`  what became of the jobs
- `drift`  a million jobs and two hundred reconnects: `python -m bench.soak.drift`
- `bulk`   the same for one batch of requests: `python -m bench.soak.bulk`
"""
