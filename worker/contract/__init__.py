"""Shared by the API and the worker: settings, jobs, keys and wire formats. Never imports torch.

In reading order:

- `settings`: every `EMBEDQ_*` variable, read once at startup
- `redaction`: remove secrets of URLs from answers and logs
- `hosts`: parse and match trusted host names
- `errors`: every error, with its code
- `models`: the properties of a loaded model
- `jobs`: validate the arguments of a job; its states
- `outcomes`: outcomes of jobs, as data
- `results`: formats of stored vectors and failures
- `lanes`: priorities, and the Redis list of each
- `keys`: every Redis key and channel
- `server`: Redis clients from Celery's URLs
- `clock`: Redis' clock, common to all processes
- `eviction`: warn if Redis may evict keys
- `round_trips`: combine the commands of many threads
- `scripts`: load the Lua scripts of a job's life
- `record`: the tenant's view of a job
- `submissions`: a submission, its bounds and its verdict
- `completions`: complete many jobs in one script
- `outbox`: messages for a broker on another server, kept until it has them
- `lost`: find jobs whose messages were purged
- `store`: submit, complete, read, cancel and list jobs
- `liveness`: live workers and their models
- `figures`: format of a worker's counters
- `pulse`: the last minutes of a queue, for the page
- `storage`: files in a folder, or in a bucket by URL
- `listing`: pages of a tenant's jobs, files or batches
- `files`: users' files and their records
- `file_room`: bounds of stored files
- `room`: bounds of waiting messages and stored results
- `batch`: one batch of requests and its progress
- `batches`: create, claim, list and cancel batches
- `api_keys`: API keys and their file
- `quota`: requests and tokens per minute of a key
- `estimates`: estimate the tokens and bytes of a job
- `records`: records of jobs that are submitted through Celery
- `dead_letters`: messages that no worker can run
- `openai`: OpenAI's embeddings requests and answers
- `messages`: build the Celery message of a job without a producer
- `traces`: detect a collector of traces
- `spans`: OpenTelemetry spans of requests and jobs
- `logs`: log records as JSON lines
- `app`: the Celery application and its configuration
"""
