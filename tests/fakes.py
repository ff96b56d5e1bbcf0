"""A fake encoder and callbacks that record, for tests of the engine's own decisions."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from worker.contract.errors import JobFailed
from worker.contract.jobs import DEFAULT_OPTIONS, JobOptions
from worker.contract.lanes import Lane
from worker.contract.models import ModelInfo
from worker.contract.outcomes import Outcome
from worker.encoder.protocol import Cause
from worker.encoder.tokens import TokenBlock
from worker.engine import Job, JobCallbacks

#: Seconds that a test waits for another thread before it fails.
DEADLINE = 10.0
DIMENSIONS = 6

#: Words with an effect in any position of a text.
POISON, NAN, INFINITE, OPPOSITES = "POISON", "NAN", "INFINITE", "OPPOSITES"
UNREADABLE = "UNREADABLE"


def model_info(name: str = "fake", **changes: object) -> ModelInfo:
    facts: dict[str, object] = {
        "dimensions": DIMENSIONS,
        "max_tokens": 64,
        "device": "cpu",
        "backend": "fake",
        "dtype": "float32",
        "packed": True,
        "batch_tokens": 32,
        "matryoshka": (2, 4),
    }
    return ModelInfo(name, **(facts | changes))  # type: ignore[arg-type]


def _nothing(_: object) -> None:
    pass


class OutOfMemory(RuntimeError):
    """Raised by `FakeEncoder` for a batch of more tokens than its memory holds."""


class FakeEncoder:
    """An `Encoder` with words as tokens. Records the texts of every batch.

    A word's id is its checksum, so a text's vector depends on its words alone.
    """

    def __init__(self, info: ModelInfo | None = None) -> None:
        self._info = info or model_info()
        #: Texts of each forward pass, as words, including the probe of a device.
        self.batches: list[list[str]] = []
        self.tokenised: list[int] = []
        #: Tokens of a batch before memory runs out.
        self.memory: int | None = None
        self.releases = 0
        self.lost = False
        self.slots = 1
        self.reserved = False
        #: Called by `forward` with the batch's texts, before anything else.
        self.before: Callable[[list[str]], None] = _nothing
        #: Called by `tokenize` with its texts, before anything else.
        self.before_tokens: Callable[[list[str]], None] = _nothing
        self._words: dict[int, str] = {}

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def padding(self) -> int:
        return 0

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> TokenBlock:
        self.before_tokens(list(texts))
        self.tokenised.append(len(texts))
        rows, cut = [], []
        for text in texts:
            words = (f"{prompt} {text}" if prompt else text).split()
            if UNREADABLE in words:
                raise ValueError(text)
            kept = words[: self._info.max_tokens]
            self._words |= {_id(word): word for word in kept}
            rows.append([_id(word) for word in kept])
            cut.append(len(words) > len(kept))
        return TokenBlock(
            np.array([token for row in rows for token in row], dtype=np.int32),
            np.cumsum([0, *map(len, rows)], dtype=np.int64),
            np.zeros(len(rows), dtype=np.int32),
            np.array(cut, dtype=np.bool_),
        )

    def forward(self, batch: TokenBlock, *, cores: int = 1) -> NDArray[np.float32]:
        rows = [batch.slice(at, at + 1).ids.tolist() for at in range(len(batch))]
        texts = [" ".join(self._words[token] for token in row) for row in rows]
        self.batches.append(texts)
        self.before(texts)
        if self.lost:
            raise RuntimeError("device-side assert")
        if self.memory is not None and batch.tokens > self.memory:
            raise OutOfMemory
        if any(POISON in text.split() for text in texts):
            raise ValueError(texts)
        return np.stack([_vector(text) for text in texts])

    def enter(self, *, yielding: bool) -> None:
        pass

    def cause(self, error: BaseException) -> Cause:
        if isinstance(error, OutOfMemory):
            return Cause.MEMORY
        return Cause.DEVICE if "device-side" in str(error) else Cause.TEXT

    def release_memory(self) -> None:
        self.releases += 1

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass

    @property
    def seen(self) -> list[str]:
        """Every text of every batch, with its repetitions."""
        return [text for batch in self.batches for text in batch]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Start with the device inside a batch, which ends with the block.

        Texts submitted inside wait for the next batch.
        """
        entered, leave = threading.Event(), threading.Event()

        def wait(texts: list[str]) -> None:
            entered.set()
            assert leave.wait(DEADLINE)

        before, self.before = self.before, wait
        self._entered = entered
        try:
            yield
        finally:
            self.before = before
            leave.set()

    def wait_until_busy(self) -> None:
        """Inside `held`: wait until the device is in its batch."""
        assert self._entered.wait(DEADLINE)


def vector_of(text: str, *, prompt: str = "", normalize: bool = True) -> NDArray[np.float32]:
    """Return the expected vector of a text."""
    vector = _vector(" ".join(f"{prompt} {text}".split()[:64]))
    return vector / np.float32(np.linalg.norm(vector)) if normalize else vector


def _id(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass")) >> 1


def _vector(text: str) -> NDArray[np.float32]:
    numbers = np.random.default_rng([_id(word) for word in text.split()] or [0])
    vector = numbers.normal(size=DIMENSIONS).astype(np.float32)
    words = text.split()
    if NAN in words:
        vector[2] = np.nan
    if INFINITE in words:
        vector[0] = np.inf
    if OPPOSITES in words:
        vector[:2] = np.inf, -np.inf
    return vector


@dataclass(eq=False)
class RecordingSink(JobCallbacks):
    """Callbacks that record their calls and threads, and that can block."""

    heard: list[tuple[str, str, str]] = field(default_factory=list)
    outcomes: dict[str, Outcome | JobFailed] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    error: BaseException | None = None
    #: Called with each event's name before it is recorded.
    before: Callable[[str], None] = _nothing

    def __post_init__(self) -> None:
        self._changed = threading.Condition()

    def admit(self, job: Job) -> bool:
        self._hear("admit", [job])
        return job.id not in self.refused

    def isolate(self, job: Job) -> bool:
        self._hear("isolate", [job])
        return job.id not in self.refused

    def released(self, job: Job) -> None:
        self._hear("released", [job])

    def started(self, jobs: Sequence[Job]) -> None:
        self._hear("started", jobs)

    def progressed(self, jobs: Sequence[Job]) -> None:
        self._hear("progressed", jobs)

    def completed(self, jobs: Sequence[Job]) -> None:
        self._hear("completed", jobs)

    def crashed(self, error: BaseException) -> None:
        with self._changed:
            self.error = error
            self._changed.notify_all()

    def of(self, event: str) -> list[str]:
        """Ids of the jobs of an event, in order."""
        with self._changed:
            return [job_id for heard, job_id, _ in self.heard if heard == event]

    def threads_of(self, event: str) -> set[str]:
        with self._changed:
            return {thread for heard, _, thread in self.heard if heard == event}

    def outcome(self, job_id: str) -> Outcome:
        """Wait until a job completes with vectors, and return them."""
        outcome = self._ended(job_id)
        assert isinstance(outcome, Outcome), outcome
        return outcome

    def failure(self, job_id: str) -> JobFailed:
        """Wait until a job completes without vectors."""
        outcome = self._ended(job_id)
        assert isinstance(outcome, JobFailed), outcome
        return outcome

    def wait_for_crash(self) -> BaseException:
        with self._changed:
            assert self._changed.wait_for(lambda: self.error is not None, DEADLINE)
            assert self.error is not None
            return self.error

    def wait_for(self, event: str, job_id: str) -> None:
        def told() -> bool:
            return any((heard, of) == (event, job_id) for heard, of, _ in self.heard)

        with self._changed:
            assert self._changed.wait_for(told, DEADLINE), (event, job_id)

    def _ended(self, job_id: str) -> Outcome | JobFailed:
        with self._changed:
            assert self._changed.wait_for(lambda: job_id in self.outcomes, DEADLINE), job_id
            return self.outcomes[job_id]

    def _hear(self, event: str, jobs: Sequence[Job]) -> None:
        self.before(event)
        thread = threading.current_thread().name
        with self._changed:
            self.heard += [(event, job.id, thread) for job in jobs]
            if event == "completed":
                for job in jobs:
                    assert job.id not in self.outcomes, f"{job.id} ended twice"
                    self.outcomes[job.id] = job.outcome()
            self._changed.notify_all()


def job_of(
    texts: Sequence[object],
    job_id: str = "job",
    *,
    info: ModelInfo | None = None,
    prompt: str | None = None,
    isolated: bool = False,
    lane: Lane = Lane.NORMAL,
    tenant: str = "",
    **options: object,
) -> Job:
    chosen = JobOptions.model_validate(options) if options else DEFAULT_OPTIONS
    return Job(
        *(job_id, list(texts), chosen, info or model_info()),
        prompt=prompt,
        isolated=isolated,
        lane=lane,
        tenant=tenant,
    )
