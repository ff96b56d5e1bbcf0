"""Benchmarks for the figures in the README: `python -m bench.NAME [--quick]` runs one.

Rates are compared with `SentenceTransformer.encode` on the same texts in the same run, in turns, so
that a change of the machine's speed affects both. Benchmarks are never part of the test suite.

- `texts`       real English: short, mixed, long and repeated
- `report`      options, the machine, tables and JSON
- `measure`     contestants in turns, medians, percentiles
- `peer`        a program on the other end of a pipe
- `baseline`    the library's `encode`, in a process of its own
- `models`      the library's model and ours, for this process
- `stage`       Valkey, workers and the API as processes of their own
- `load`        callers, in a process of their own
- `throughput`  texts a second: raw engine, Celery, REST, the library
- `peers`       against infinity-emb (`infinity`) and a plain Celery task (`plain_task`)
- `latency`     one small job on an idle system, and its milliseconds by stage
- `growth`      the engine's speed by the length of texts and the depth of the queue
- `service`     the engine in one process, against callers that share a lock
- `overhead`    jobs a second with a model that costs nothing (`costless`), on ours and on kombu's
                transport (`stock`)
- `cost`        processor time of a request over REST, by process
- `waiting`     a fast request during the waits of a thousand clients
- `lanes`       a waiting caller, with a deep bulk queue and with another tenant's flood
- `leak`        resources still in use after a hundred thousand requests
- `bulk`        a file of requests, and its effect on other callers
- `idle`        the cost of an idle worker and an idle API
- `gemm`        the machine's limit, and the engine's share of it
- `gpu`         a GPU: the encoder, jobs in one process, `gpu_faults`; needs no Celery and no Redis
- `random_models`  models of real sizes with random weights
- `soak`        everything killed under load, every job counted
- `publish`     figures into the documentation, as tables and pictures (`charts`)

`python -m bench` (`make bench`) runs the set.
"""
