"""Job runners of a run: the engine in this process, or a service."""

from __future__ import annotations

from collections.abc import Sequence

from worker.contract.errors import JobFailed
from worker.contract.jobs import JobOptions
from worker.contract.outcomes import Outcome
from worker.offline.client import Remote
from worker.service import EmbeddingService


class LocalRunner:
    """The engine of this process. `close` ends it."""

    def __init__(self, service: EmbeddingService, options: JobOptions) -> None:
        self._service = service
        self._options = options

    def load(self) -> None:
        """Load the model now. Raises ModelUnavailable and its kin, and InvalidJob for options."""
        self._service.encode([], **self._options.model_dump(exclude_defaults=True))

    def embed(self, texts: Sequence[str]) -> Outcome | JobFailed:
        return self._service.run(texts, self._options)

    def close(self) -> None:
        self._service.close()


class RemoteRunner:
    """A service at an address. `close` ends the connections."""

    def __init__(self, remote: Remote, options: JobOptions) -> None:
        self._remote = remote
        self._options = options.model_dump(exclude_defaults=True)

    def embed(self, texts: Sequence[str]) -> Outcome | JobFailed:
        return self._remote.embed(texts, self._options)

    def close(self) -> None:
        self._remote.close()
