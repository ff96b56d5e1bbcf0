"""What the API and the worker agree on: settings, jobs, keys and the wire. Never torch.

In reading order:

- `settings`  every `EMBEDQ_*` variable, read once at the edge
- `redaction` secrets of URLs, kept out of answers and logs
- `hosts`     names by which the API may be called
- `errors`    what can go wrong, each with its code
- `models`    what a loaded model says of itself
- `jobs`      a job's arguments, checked; its states
- `results`   vectors and failures as they are stored
- `lanes`     which jobs are taken first, and where they wait
- `keys`      every Redis key and channel, spelled once
- `server`    Redis clients from Celery's URLs
- `clock`     Redis' clock, which all processes share
- `eviction` a warning if Redis may drop keys
- `round_trips` commands of many threads go together
- `scripts`   Lua: the steps that must happen whole or not at all
- `endings`   how jobs end, many at once
- `record`    a job as its owner sees it
- `outbox`    messages on their way to a broker of its own
- `lost`      jobs whose messages were purged
- `submissions` a job that is offered, and how that went
- `store`     the record of a job: accepted, read, cancelled, listed
- `liveness`  the workers that live, and what they serve
- `figures`   what a worker counts, and how that travels
- `pulse`     the last minutes of a queue, for the page
- `storage`   where files lie: a folder, or a bucket by URL
- `listing`   pages of what an owner has
- `files`     files of users, and what is known of them
- `file_room` how many files and bytes may be stored
- `result_room` how many bytes stored results may hold
- `batch`     a batch of requests, and what of it is done
- `batches`   batches created, claimed, listed, cancelled
- `api_keys`  keys of the API, and the file that holds them
- `quota`     what a key may spend in a minute
- `estimates` what a job will cost, before it is tokenised
- `records`   records of jobs that go through Celery itself
- `dead_letters` messages that no worker could run
- `openai`    OpenAI's embeddings requests and answers
- `messages`  a job as a Celery message, built without a producer
- `traces`    whether somebody collects traces
- `spans`     spans of requests and jobs, for OpenTelemetry
- `logs`      log records as lines of JSON
- `app`       the Celery application and its configuration
"""
