"""Cause faults under load and check the outcome of every accepted job.

`python -m bench.soak` (`make soak` for all soaks) starts a Valkey with an append-only file, workers
and the API as separate processes. It submits jobs over REST and by direct calls, and causes faults
meanwhile. At the end it reads the outcome of each accepted job and compares the vectors.

- `kills`  workers, connections and the Valkey are killed: `python -m bench.soak chaos`
- `full`   Redis is full: `python -m bench.soak full`
- `failover`  Sentinel names another primary: `python -m bench.soak failover`
- `takeover`  a worker with many leased jobs is killed: `python -m bench.soak takeover`
- `drift`  a million jobs and two hundred reconnects: `python -m bench.soak drift`
- `links`  a worker is stopped past its lease with linked jobs: `python -m bench.soak links`
- `bulk`   kills as in `kills`, during one batch of requests: `python -m bench.soak bulk`
- `every`  all of them in sequence: `python -m bench.soak all`

The parts of the soaks:

- `stage`  the processes of a run, and operations on them
- `sentinels`  two Valkeys in place of one
- `access`  a user with few rights, and TLS
- `paced`, `linked`  workers that report pauses and links
- `load`  the callers, and the accepted jobs
- `chaos`  the faults of a run, in an order by a seed
- `watch`  observers of outcomes and memory
- `audit`  the outcomes of the jobs
- `settle`  the report of a run
"""
