"""Parse jobs and submit them to the engine. Loop's thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from worker.contract.errors import InvalidJob, JobFailed
from worker.contract.jobs import DEFAULT_OPTIONS, parse_call, resolve
from worker.contract.lanes import Lane
from worker.contract.models import ModelInfo, prompt_text
from worker.engine import Engine, Job
from worker.transport import capacity

if TYPE_CHECKING:
    from worker.pool.in_flight import InFlightJob
    from worker.pool.outcomes import Outcomes


class JobIntake:
    """Parses jobs and submits them, many at once if their messages arrive at once."""

    def __init__(self, engine: Engine, infos: Mapping[str, ModelInfo], outcomes: Outcomes) -> None:
        self._engine = engine
        self._infos = infos
        self._outcomes = outcomes
        self._tracer = outcomes.tracer
        usual = resolve(DEFAULT_OPTIONS, infos)
        #: Model and prompt of jobs with the default options.
        self._usual = usual, prompt_text(DEFAULT_OPTIONS, usual)
        #: Parsed jobs that are not submitted yet.
        self._parsed: list[Job] = []

    def tokens(self, lane: Lane) -> int:
        """Tokens of a lane that may still be fetched."""
        return self._engine.capacity(lane) if self._tracer.has_room(lane) else 0

    def add(self, in_flight: InFlightJob) -> None:
        """Parse a job and submit it, now or with those that follow at once."""
        try:
            in_flight.job = self._job(in_flight)
        except InvalidJob as error:
            self._tracer.end(in_flight, JobFailed(error.code, error.message))
            return
        self._parsed.append(in_flight.job)
        if in_flight.job.lane is Lane.INTERACTIVE or not capacity.more_follow:
            self.submit()

    def submit(self) -> None:
        """Submit the parsed jobs: one call for many costs far less each."""
        if self._parsed:
            jobs, self._parsed = self._parsed, []
            self._engine.submit(*jobs)

    def _job(self, in_flight: InFlightJob) -> Job:
        """Raises InvalidJob."""
        texts, options = parse_call(in_flight.request.args, in_flight.request.kwargs)
        if options is DEFAULT_OPTIONS:
            info, prompt = self._usual
        else:
            info = resolve(options, self._infos)
            prompt = prompt_text(options, info)
        return Job(
            in_flight.id,
            texts,
            options,
            info,
            prompt=prompt,
            owner=in_flight,
            callbacks=self._outcomes,
            isolated=in_flight.redelivered,
            lane=in_flight.lane,
            tenant=in_flight.tenant,
        )
