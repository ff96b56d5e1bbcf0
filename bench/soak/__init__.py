"""Break things under load and count what became of every accepted job.

`python -m bench.soak` (`make soak` for all of them) starts a Valkey with an append-only file,
workers and the API as processes of their own, submits jobs over REST and by direct calls, and
meanwhile lets things go wrong. In the end it reads the outcome of each accepted job and compares
the vectors.

- `kills`  workers, connections and the Valkey are killed: `python -m bench.soak chaos`
- `full`   Redis is full: `python -m bench.soak full`
- `failover`  Sentinel names another primary: `python -m bench.soak failover`
- `takeover`  a worker dies that holds many jobs: `python -m bench.soak takeover`
- `drift`  a million jobs and two hundred reconnects: `python -m bench.soak drift`
- `links`  a worker is stopped past its lease with linked jobs: `python -m bench.soak links`
- `bulk`   what `kills` does, to one batch of requests: `python -m bench.soak bulk`
- `every`  one after the other: `python -m bench.soak all`

What they are made of: `stage` the processes, and what can be done to them, `sentinels` two Valkeys
in place of one, `access` a user with few rights and TLS, `paced` and `linked` workers that tell of
pauses and of links; `load` who submits, and what was accepted; `chaos` what happens to the
processes, by a seed; `watch` who looks on; `audit` what became of the jobs, and `settle` what a run
comes to.
"""
