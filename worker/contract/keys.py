"""Every Redis key and channel of embedq, spelled once; Celery's and kombu's keep their names."""

from __future__ import annotations

from collections.abc import Callable

#: Channel of notices: `{"ended": [id, …]}` or `{"progress": {id: [done, total]}}`, JSON.
#: One message a batch, so that every API process can listen to all of them.
EVENTS = "embedq:events"

#: Hash of one job, see `store`.
JOB_PREFIX = "embedq:job:"

#: Sorted sets of jobs, by owner.
JOBS_PREFIX = "embedq:jobs:"

#: Celery's own prefix of a stored result, which is also its channel.
RESULT_PREFIX = "celery-task-meta-"


def job(job_id: str) -> str:
    """Hash: the record of a job."""
    return JOB_PREFIX + job_id


def result(job_id: str) -> str:
    """String: the outcome of a job in Celery's format."""
    return RESULT_PREFIX + job_id


def jobs(owner: str) -> str:
    """Sorted set: ids of an owner's jobs by their time of acceptance."""
    return JOBS_PREFIX + owner


def idempotency(owner: str, key: str) -> str:
    """Hash: the job that an Idempotency-Key of an owner stands for."""
    return f"embedq:idempotency:{owner}:{key}"


def shared(owner: str, fingerprint: str) -> str:
    """Hash: the job under way that equal submissions of an owner join."""
    return f"embedq:shared:{owner}:{fingerprint}"


def crashes(job_id: str) -> str:
    """Set: tags of the deliveries of this job that began to run alone and did not end."""
    return f"embedq:crashes:{job_id}"


def attempts(job_id: str) -> str:
    """String: the number of such deliveries that workers of an older version counted."""
    return f"embedq:attempts:{job_id}"


def ledger(queue: str) -> str:
    """Hash: what a queue holds.

    `tokens` accepted and not ended, estimated at acceptance; `expected` bytes of their results;
    `stored:M` bytes of the results of minute M; `share:L:O` tokens of owner O in lane L, where
    owners are told apart.
    """
    return f"embedq:ledger:{queue}"


def quota(owner: str) -> str:
    """Hash: what is left of the minute of an owner, see `quota`."""
    return f"embedq:quota:{owner}"


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


#: The queue whose keys all deployments shared in earlier versions.
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
    """Stream: what the engines of a queue's workers did in the last minutes, see `pulse`."""
    return f"embedq:pulse:{queue}"
