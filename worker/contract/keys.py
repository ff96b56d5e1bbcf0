"""Every Redis key and channel of embedq, spelled once; Celery's and kombu's keep their names.

Keys of a deployment contain the name of its queue, so several deployments can share a server. Keys
with an id do not need it: ids cannot be guessed.
"""

from __future__ import annotations

from collections.abc import Callable

#: Channel of notices: `{"ended": [id, …]}` or `{"progress": {id: [done, total]}}`, JSON.
#: One message a batch, so that every API process can listen to all of them.
EVENTS = "embedq:events"

#: Hash of one job, see `store`.
JOB_PREFIX = "embedq:job:"

#: Celery's own prefix of a stored result, which is also its channel.
RESULT_PREFIX = "celery-task-meta-"


def job(job_id: str) -> str:
    """Hash: the record of a job."""
    return JOB_PREFIX + job_id


def result(job_id: str) -> str:
    """String: the outcome of a job in Celery's format."""
    return RESULT_PREFIX + job_id


def jobs(queue: str, owner: str) -> str:
    """Sorted set: ids of an owner's jobs by their time of acceptance."""
    return f"{queue}:jobs:{owner}"


def open_jobs(queue: str) -> str:
    """Sorted set: ids of accepted jobs that have not ended.

    By the time from which their message must be somewhere on the server.
    """
    return f"{queue}:open"


def cancelled(queue: str) -> str:
    """Sorted set: ids of cancelled jobs whose messages may still wait, by their cancellation."""
    return f"{queue}:cancelled"


def outbox(queue: str) -> str:
    """Hash: messages that the broker, a server of its own, does not have yet; by id.

    A value is the time of acceptance, the list that the message belongs on, and the message, each
    on a line.
    """
    return f"{queue}:outbox"


def idempotency(queue: str, owner: str, key: str) -> str:
    """Hash: the job that an Idempotency-Key of an owner stands for."""
    return f"{queue}:idempotency:{owner}:{key}"


def shared(queue: str, owner: str, fingerprint: str) -> str:
    """Hash: the job under way that equal submissions of an owner join."""
    return f"{queue}:shared:{owner}:{fingerprint}"


def call(queue: str, token: str) -> str:
    """String: the answer to a call that a client may repeat, for some seconds."""
    return f"{queue}:call:{token}"


def crashes(job_id: str) -> str:
    """Set: tags of the deliveries of this job that began to run alone and did not end."""
    return f"embedq:crashes:{job_id}"


def attempts(job_id: str) -> str:
    """String: the number of such deliveries that workers of an older version counted."""
    return f"embedq:attempts:{job_id}"


def ledger(queue: str) -> str:
    """Hash: the counters of a queue, see `lua/common.lua`."""
    return f"embedq:ledger:{queue}"


def quota(queue: str, owner: str) -> str:
    """Hash: what is left of the minute of an owner, see `quotas`."""
    return f"{queue}:quota:{owner}"


def workers(queue: str) -> str:
    """Hash: what each worker of a queue says of itself, JSON by node name."""
    return f"embedq:workers:{queue}"


#: Hash: messages handed out and not ended; kombu's name for it.
LEASED = "unacked"


def dead_letters(queue: str) -> str:
    """List: messages that no worker can run, newest first."""
    return f"embedq:dead-letters:{queue}"


def files_expiry(queue: str) -> str:
    """Sorted set: ids of files by the time at which they are removed, those half uploaded too."""
    return f"{queue}:files-expiry"


def files_held(queue: str) -> str:
    """Hash: `bytes:owner` of each file whose bytes are, or may be, in the deployment's storage."""
    return f"{queue}:files-held"


def files_used(queue: str) -> str:
    """Hash: the sums of `files_held`: `files`, `bytes`, and of owner O `files:O`, `bytes:O`."""
    return f"{queue}:files-used"


#: The queue in the keys that all deployments shared in earlier versions.
SHARED_QUEUE = "embedq"


def file(file_id: str) -> str:
    """Hash: what is known of a file, see `files`."""
    return f"embedq:file:{file_id}"


def files(queue: str, owner: str) -> str:
    """Sorted set: ids of an owner's files by their time of upload."""
    return f"{queue}:files:{owner}"


def batch(batch_id: str) -> str:
    """Hash: one batch of requests, see `batches`."""
    return f"embedq:batch:{batch_id}"


def batches(queue: str, owner: str) -> str:
    """Sorted set: ids of an owner's batches by their time of creation."""
    return f"{queue}:batches:{owner}"


def with_shared(listing: Callable[[str, str], str], queue: str, owner: str) -> list[str]:
    """A listing of an owner, and the one that deployments shared in earlier versions."""
    return list(dict.fromkeys((listing(queue, owner), listing(SHARED_QUEUE, owner))))


def batch_queue(queue: str) -> str:
    """List: the Celery queue of batches' coordinators, beside a queue of jobs."""
    return f"{queue}.batches"


def cache(queue: str) -> str:
    """Hash: vectors of earlier texts by digest, and in `bytes` what they take."""
    return f"embedq:cache:{queue}"


def cache_used(queue: str) -> str:
    """Sorted set: the digests of a cache by their last use."""
    return f"embedq:cache-used:{queue}"


def pulse(queue: str) -> str:
    """Stream: samples of the last minutes of a queue, see `store.queue_history`."""
    return f"embedq:pulse:{queue}"
