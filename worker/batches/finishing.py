"""The end of a batch: parts of its output become files of its owner."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace

from worker.batches.resources import Resources
from worker.contract import keys
from worker.store.files import BATCH_OUTPUT, FileRecord, object_name
from worker.store.openai_batch import OpenAIBatch, OpenAIBatchStatus
from worker.store.openai_batches import Claim
from worker.store.storage import StorageUnavailable

logger = logging.getLogger(__name__)


def finish(
    means: Resources, claim: Claim, batch: OpenAIBatch, status: OpenAIBatchStatus
) -> OpenAIBatch:
    """Put the files together and end the batch with `status`, unless it got another meanwhile.

    May be repeated: the files have the same ids each time. Raises Superseded.
    """
    output = _file(means, batch, "output", batch.output_parts, batch.completed)
    errors = _file(means, batch, "error", batch.error_parts, batch.failed)
    ended = replace(batch, output_file_id=output, error_file_id=errors)
    return means.batches.move(claim, ended, status, come_from=(batch.status,))


def clean_up(means: Resources, batch: OpenAIBatch) -> None:
    """Remove what only the running batch needed, and files whose time has passed."""
    means.store.client.delete(keys.jobs(means.settings.queue, batch.id))
    try:
        means.files.storage.remove(batch.folder)
        means.files.sweep()
    except StorageUnavailable as error:
        logger.warning("The parts of batch %s were not removed: %s", batch.id, error.message)


def _file(means: Resources, batch: OpenAIBatch, kind: str, parts: Sequence[str], lines: int) -> str:
    """The id of the file made of some parts, or '' where there are none."""
    if not parts:
        return ""
    # As hard to guess as the batch's own id.
    digest = hashlib.sha256(f"{batch.id} {kind}".encode()).hexdigest()
    file_id = f"file-{digest[:32]}"
    # Whatever it takes: the batch was accepted, so it ends with its answers.
    means.files.reserve(file_id, batch.owner, 0, bounded=False)
    size = means.files.storage.join(parts, object_name(file_id))
    now = means.files.now()
    means.files.add(
        FileRecord(
            file_id,
            name=f"{batch.id}_{kind}.jsonl",
            bytes=size,
            lines=lines,
            purpose=BATCH_OUTPUT,
            owner=batch.owner,
            created_at=now,
            expires_at=now + batch.output_ttl,
        )
    )
    return file_id
