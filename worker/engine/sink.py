"""The receiver of the events of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from worker.engine.job import Job


class Sink(Protocol):
    """The methods that the engine calls on its user.

    Of a job that was cancelled it hears no more, but for a call that was under way already. What
    it raises takes the engine down.
    """

    def admit(self, job: Job) -> bool:
        """Whether a job may start; asked once, before its first text is encoded.

        On a thread that encodes and waits for the answer, or, for a job whose vectors are all
        remembered, on the thread that looked them up. One that may not is forgotten. Not asked of
        a job that runs alone.
        """

    def isolate(self, job: Job) -> bool:
        """Whether a job that runs alone may go on; asked before each slice, and its first stage.

        The first slot's thread, while the others rest; may block. One that may not is forgotten.
        """

    def released(self, job: Job) -> None:
        """Such a slice has ended and is told, so other jobs run again. The same thread; may block.

        Not called if the engine closes meanwhile.
        """

    def started(self, jobs: Sequence[Job]) -> None:
        """The first texts of these jobs are in the batch that runs now. A thread that encodes."""

    def progressed(self, jobs: Sequence[Job]) -> None:
        """More texts of these jobs have vectors, others do not yet. Writer thread."""

    def finished(self, jobs: Sequence[Job]) -> None:
        """Every text of these jobs has ended. Writer thread; may block, the device goes on.

        A job was never started if its texts all failed in the tokenizer or were all remembered.
        """

    def crashed(self, error: BaseException) -> None:
        """A thread of the engine died of `error`, and this is it; nothing will be encoded any more.

        `Engine.close` returns the jobs that will never end. May be called once a thread.
        """
