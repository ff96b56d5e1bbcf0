"""The lines of a batch: read in windows, run as jobs, their answers written window by window."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import IO, Any, Self

import orjson

from worker.batches import lines, output
from worker.batches.dispatch import CHECK_SECONDS, Dispatch, EndedPack
from worker.batches.notifications import Notifications
from worker.batches.packs import AnsweredLine, LineWindow, Pack, Want, packs
from worker.batches.resources import Resources
from worker.contract import estimates, jobs
from worker.contract.errors import InvalidJob
from worker.contract.jobs import Status
from worker.contract.results import matrix
from worker.openai.answers import param_of_failure
from worker.openai.calls import parse_call
from worker.store.openai_batch import OpenAIBatch, OpenAIBatchStatus
from worker.store.openai_batches import Claim, Superseded
from worker.store.worker_registry import Workers

logger = logging.getLogger(__name__)

#: Texts of one window, unless a single line has more, and windows that are open at once: together
#: the part of a batch that is in memory.
WINDOW_TEXTS = 512
_OPEN_WINDOWS = 8
#: Seconds after which a full service is asked again, and one without workers.
_ASK_AGAIN = 1.0
#: Failures that do not depend on the lines that share a job.
_OF_OPTIONS = frozenset({"model_not_found", "invalid_dimensions", "invalid_prompt", "cancelled"})
_EXPIRED = "the request was not run before the completion window closed"


class Processing:
    """Part of one run over a batch, on its thread. Raises as `Coordinator.run` does."""

    def __init__(self, means: Resources, claim: Claim, batch: OpenAIBatch, file: IO[bytes]) -> None:
        self._means = means
        self._claim = claim
        self._batch = batch
        self._lines: Iterator[lines.RequestLine] = lines.read_lines(
            file, means.settings.max_job_bytes, offset=batch.offset, number=batch.line
        )
        self._notices = Notifications(means.store.client)
        self._dispatch = Dispatch(means, self._notices, batch)
        self._windows: deque[LineWindow] = deque()
        self._unsent: deque[Pack] = deque()
        self._full = False
        self._read_all = False
        self._check_at = 0.0
        #: Whether the completion window closed before all lines were answered.
        self.expired = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._notices.close()

    @property
    def done(self) -> bool:
        """Whether every line is answered, and its answer kept."""
        return self._read_all and not self._windows

    def run(self, until: float) -> OpenAIBatch:
        """Answer lines until all are answered, the batch is cancelled or the time is over.

        `until` is a time of `time.monotonic`. Returns the current state of the batch.
        """
        while not self.done and time.monotonic() < until:
            if self._means.batches.now() >= self._batch.expires_at:
                self._give_up()
            self._advance()
            if self._keep_answers() is OpenAIBatchStatus.CANCELLING:
                return self._stop()
            if self._has_to_wait():
                self._collect()
        return self._batch

    def _advance(self) -> None:
        """Read lines and submit jobs up to the bounds."""
        workers = self._means.liveness.workers()
        self._full = not (workers.models or self.expired)
        while not self._full:
            while self._unsent and self._dispatch.has_room(workers):
                if not self._dispatch.send(self._unsent[0]):
                    self._full = True
                    return
                self._unsent.popleft()
            if self._unsent or self._read_all or len(self._windows) >= _OPEN_WINDOWS:
                return
            self._open_window(workers)

    def _open_window(self, workers: Workers) -> None:
        window = LineWindow()
        wants: list[Want] = []
        texts = 0
        for line in self._lines:
            request = lines.parse(line.raw, self._batch.endpoint)
            entry = AnsweredLine(line.number, request.custom_id)
            window.entries.append(entry)
            window.end, window.line = line.end, line.number
            want = self._want(entry, request.body, workers)
            if want is not None:
                wants.append(want)
            texts += max(len(entry.texts), 1)
            if texts >= WINDOW_TEXTS:
                break
        else:
            self._read_all = True
        if window.entries:
            self._windows.append(window)
            budget = max(want.model.batch_tokens for want in wants) if wants else 0
            self._unsent.extend(packs(window, wants, budget))

    def _want(self, entry: AnsweredLine, body: dict[str, Any], workers: Workers) -> Want | None:
        """The options and model of a line, or None if it is already answered."""
        if self.expired:
            entry.settle(output.given_up(entry.custom_id, "batch_expired", _EXPIRED))
            return None
        try:
            call = parse_call(body, self._means.token_table)
            model = jobs.resolve(call.options, workers.models)
        except InvalidJob as error:
            entry.settle(output.failed(entry.custom_id, error.code, error.message, error.field))
            return None
        entry.texts, entry.encoding_format = call.texts, call.encoding_format
        options = call.options.model_copy(update={"token_counts": True})
        tokens = estimates.of_job(call.texts, options, model)
        return Want(entry, options, model, tokens)

    def _has_to_wait(self) -> bool:
        if not self._windows:
            return not self._read_all
        return not self._windows[0].answered

    def _collect(self) -> None:
        """Wait until jobs end, and answer their lines."""
        ended, changed = self._dispatch.collect(_ASK_AGAIN if self._full else CHECK_SECONDS)
        for one in ended:
            self._settle(one)
        if self._batch.id in changed:
            self._check_at = 0.0

    def _settle(self, ended: EndedPack) -> None:
        pack, record = ended.pack, ended.record
        if record is None:
            # The job has expired or was removed.
            self._unsent.appendleft(replace(pack, before=ended.job_id))
            return
        pack.window.jobs.append(ended.job_id)
        if record.status is Status.SUCCEEDED and ended.meta is not None:
            _settle_vectors(pack, orjson.loads(ended.meta)["result"])
            return
        code = "cancelled" if record.status is Status.CANCELLED else record.code or "internal_error"
        if len(pack.entries) > 1 and code not in _OF_OPTIONS:
            # The job failed as a whole; split it to find the line at fault.
            self._unsent.extendleft(reversed(pack.halves()))
            return
        message = record.message or f"the job was {record.status}"
        for entry in pack.entries:
            _settle_failure(entry, code, message)

    def _keep_answers(self) -> OpenAIBatchStatus:
        """Write the answered windows, in order, and return the status of the batch."""
        status = None
        while self._windows and self._windows[0].answered:
            status = self._write(self._windows.popleft())
        if status is None and time.monotonic() >= self._check_at:
            found = self._means.batches.read(self._batch.id)
            if found is None:
                raise Superseded(self._batch.id)
            status = found.status
        if status is None:
            return self._batch.status
        self._check_at = time.monotonic() + CHECK_SECONDS
        return status

    def _write(self, window: LineWindow, *, whole: bool = True) -> OpenAIBatchStatus:
        """Write the answers of a window, then add them to the checkpoint."""
        answered = [entry for entry in window.entries if entry.answer is not None]
        good = [entry for entry in answered if entry.ok]
        bad = [entry for entry in answered if not entry.ok]
        batch = self._batch
        self._batch = replace(
            batch,
            completed=batch.completed + len(good),
            failed=batch.failed + len(bad),
            prompt_tokens=batch.prompt_tokens + sum(entry.tokens for entry in good),
            offset=window.end if whole else batch.offset,
            line=window.line if whole else batch.line,
            output_parts=[*batch.output_parts, *self._put("output", window, good)],
            error_parts=[*batch.error_parts, *self._put("error", window, bad)],
        )
        status = self._means.batches.checkpoint(self._claim, self._batch)
        self._dispatch.release(window.jobs)
        return status

    def _put(self, kind: str, window: LineWindow, entries: list[AnsweredLine]) -> list[str]:
        """Write one part; its name contains the claim, so that no other run writes to it."""
        if not entries:
            return []
        name = f"{self._batch.folder}/{window.line:08d}-{self._claim.epoch}-{kind}"
        with self._means.files.storage.writer(name) as part:
            part.write(b"".join(entry.answer or b"" for entry in entries))
        return [name]

    def _give_up(self) -> None:
        """Fail all unanswered lines, because the completion window has closed."""
        if self.expired:
            return
        self.expired = True
        self._unsent.clear()
        self._dispatch.cancel()
        for window in self._windows:
            for entry in window.entries:
                if entry.answer is None:
                    entry.settle(output.given_up(entry.custom_id, "batch_expired", _EXPIRED))

    def _stop(self) -> OpenAIBatch:
        """Write the existing answers of a cancelled batch."""
        self._unsent.clear()
        self._dispatch.cancel()
        for one in self._dispatch.collect(0.0)[0]:
            if one.record is not None and one.record.status is Status.SUCCEEDED:
                self._settle(one)
        while self._windows:
            self._write(self._windows.popleft(), whole=False)
        return self._means.batches.read(self._batch.id) or self._batch


def _settle_vectors(pack: Pack, result: dict[str, Any]) -> None:
    """Answer each line with its share of a job's vectors, or with the first of its errors."""
    vectors, _ = matrix(result["embeddings"])
    faults = {fault["index"]: fault for fault in result["errors"]}
    counts = result["token_counts"]
    start = 0
    for entry in pack.entries:
        stop = start + len(entry.texts)
        bad = next((at for at in range(start, stop) if at in faults), None)
        if bad is not None:
            message = f"input[{bad - start}]: {faults[bad]['message']}"
            _settle_failure(entry, faults[bad]["code"], message)
        else:
            tokens = sum(counts[start:stop])
            answer = output.embedded(
                entry.custom_id, result["model"], vectors[start:stop], tokens, entry.encoding_format
            )
            entry.settle(answer, ok=True, tokens=tokens)
        start = stop


def _settle_failure(entry: AnsweredLine, code: str, message: str) -> None:
    param = param_of_failure(message)
    entry.settle(output.failed(entry.custom_id, code, message, param))
