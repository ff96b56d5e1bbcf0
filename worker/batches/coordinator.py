"""One run over a batch, from the last checkpoint.

A run may end at any moment, by a kill or because Redis fails. The next run continues from the last
checkpoint; output that no checkpoint names does not count.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import replace

from worker.batches import lines, output
from worker.batches.processing import Processing
from worker.batches.resources import Resources
from worker.store.files import FileRecord, object_name
from worker.store.openai_batch import FileFault, OpenAIBatch, OpenAIBatchStatus
from worker.store.openai_batches import Claim
from worker.store.storage import ObjectMissing

logger = logging.getLogger(__name__)

#: Seconds after which a run yields to other batches; it continues after them.
_TURN_SECONDS = 60.0


class Coordinator:
    """Takes one batch through its statuses. Belongs to the thread that runs it."""

    def __init__(self, means: Resources, claim: Claim) -> None:
        self._means = means
        self._claim = claim
        self._turn_ends = time.monotonic() + _TURN_SECONDS

    def run(self) -> bool:
        """Whether the batch has ended; if not, its turn is over and another run continues it.

        Raises Superseded, redis.RedisError and StorageUnavailable; after any of them, the batch can
        be run again.
        """
        batch = self._claim.batch
        while not batch.status.ended:
            try:
                before = batch
                batch = self._step(batch)
            except ObjectMissing as error:
                batch = self._fail(batch, [FileFault("file_not_found", error.message)])
            if batch.status is before.status and not batch.status.ended:
                return False
        output.clean_up(self._means, batch)
        return True

    def fail(self, fault: FileFault) -> None:
        """End the batch without output: it cannot be run, now or later."""
        batch = self._claim.batch
        if not batch.status.ended:
            batch = self._fail(batch, [fault])
        output.clean_up(self._means, batch)

    def _step(self, batch: OpenAIBatch) -> OpenAIBatch:
        if batch.status is OpenAIBatchStatus.VALIDATING:
            return self._validate(batch)
        if batch.status is OpenAIBatchStatus.IN_PROGRESS:
            return self._process(batch)
        if batch.status is OpenAIBatchStatus.CANCELLING:
            return output.finish(self._means, self._claim, batch, OpenAIBatchStatus.CANCELLED)
        expired = OpenAIBatchStatus.EXPIRED in batch.reached
        status = OpenAIBatchStatus.EXPIRED if expired else OpenAIBatchStatus.COMPLETED
        return output.finish(self._means, self._claim, batch, status)

    def _validate(self, batch: OpenAIBatch) -> OpenAIBatch:
        source = self._source(batch)
        with self._means.files.storage.reader(object_name(source.id)) as file:
            found = lines.read_lines(file, self._means.settings.max_job_bytes)
            findings = lines.check(found, batch.endpoint)
        if findings.faults:
            return self._fail(batch, findings.faults)
        return self._means.batches.move(
            self._claim,
            replace(batch, total=findings.total, model=findings.model),
            OpenAIBatchStatus.IN_PROGRESS,
            come_from=(OpenAIBatchStatus.VALIDATING,),
        )

    def _process(self, batch: OpenAIBatch) -> OpenAIBatch:
        """Run the remaining lines until the end, the end of the turn, or a cancellation."""
        source = self._source(batch)
        with ExitStack() as stack:
            file = stack.enter_context(self._means.files.storage.reader(object_name(source.id)))
            processing = stack.enter_context(Processing(self._means, self._claim, batch, file))
            batch = processing.run(self._turn_ends)
        if not processing.done or batch.status is not OpenAIBatchStatus.IN_PROGRESS:
            return batch
        reached = dict(batch.reached)
        if processing.expired:
            reached[OpenAIBatchStatus.EXPIRED] = self._means.batches.now()
        return self._means.batches.move(
            self._claim,
            replace(batch, reached=reached),
            OpenAIBatchStatus.FINALIZING,
            come_from=(OpenAIBatchStatus.IN_PROGRESS,),
        )

    def _source(self, batch: OpenAIBatch) -> FileRecord:
        """The file of requests. Raises ObjectMissing."""
        record = self._means.files.read(batch.input_file_id)
        if record is None:
            raise ObjectMissing(f"the input file {batch.input_file_id} is gone")
        return record

    def _fail(self, batch: OpenAIBatch, faults: list[FileFault]) -> OpenAIBatch:
        logger.warning("OpenAIBatch %s has failed: %s", batch.id, faults[0].code)
        return self._means.batches.move(
            self._claim, replace(batch, errors=faults), OpenAIBatchStatus.FAILED, come_from=()
        )
