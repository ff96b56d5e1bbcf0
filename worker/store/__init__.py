"""State in Redis, for the API and the worker.

In reading order:

- `server`: clients from the URLs that Celery takes
- `pipeline`: commands of many threads in few round trips
- `clock`: the server's clock
- `jobs`: submit and complete jobs
- `submissions`, `records`, `completions`: a job as it is submitted, read and completed
- `scripts`: the Lua scripts in `lua/`
- `outbox`, `lost_jobs`: messages on their way to the broker; jobs whose messages are gone
- `celery_jobs`: the job store of a Celery application
- `memory_limits`, `eviction`: limits that depend on the server's memory
- `openai_batch`, `openai_batches`: OpenAI batches and their store
- `files`, `storage`, `file_limits`: uploaded files, their bytes and their limits
- `api_keys`, `quotas`: API keys and their rates
- `dead_letters`: messages that no worker can run
- `worker_registry`, `queue_history`: heartbeats of live workers; the last minutes of a queue
- `listing`: pages of a tenant's ids
"""
