"""The library's model and ours, in this process: encode, encoder alone, engine.

`python -m bench.models` prints the path of our model, see `ModelInfo.path`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from worker.contract.models import ModelSpec
from worker.contract.settings import DEFAULT_MODEL_NAME
from worker.encoder import Encoder, load
from worker.encoder.reference import Reference
from worker.encoder.tokens import TokenBlock
from worker.engine import Engine, Job, JobCallbacks
from worker.loading import batches_of, on_passing_thread, run_in_slots

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from worker.contract.jobs import JobOptions

Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Plain:
    """The default job options that the engine reads, without pydantic."""

    dimensions: int | None = None
    normalize: bool = True
    truncate: bool = True
    long: str = "cut"
    token_counts: bool = False


_PLAIN = cast("JobOptions", _Plain())


def spec() -> ModelSpec:
    """Return the measured model: the packaged one, or that in the folder EMBEDQ_BENCH_MODEL."""
    return ModelSpec(DEFAULT_MODEL_NAME, os.environ.get("EMBEDQ_BENCH_MODEL"))


def library() -> Reference:
    """Return `SentenceTransformer` with the default model, warmed up."""

    def ready() -> Reference:
        model = Reference(spec())
        model.encode(["warm"] * 64)
        return model

    return on_passing_thread(ready)


def configuration(of: ModelSpec) -> PretrainedConfig:
    """Return the transformers configuration of a model, with the sizes of its layers."""
    model: Any = Reference(of)._model[0]  # noqa: SLF001 - as it was loaded
    return cast("PretrainedConfig", model.auto_model.config)


def flops_a_token(config: PretrainedConfig) -> float:
    """Return the operations of BERT's linear layers: four of h × h and two of h × i a layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return float(config.num_hidden_layers * 2 * (4 * hidden * hidden + 2 * hidden * inner))


def encoder(backend: str = "auto", dtype: str = "auto", *, padded: bool = False) -> Encoder:
    """Return our encoder of the same model, warmed up."""

    def ready() -> Encoder:
        loaded = load(spec(), backend=backend, dtype=dtype, padded=padded)
        loaded.warm_up()
        return loaded

    return on_passing_thread(ready)


def encode_in_order(model: Encoder, texts: Sequence[str]) -> Matrix:
    """Run the encoder alone: tokenize all, encode batches of the token budget in arrival order."""
    batches = batches_of(model.tokenize(texts), model.info.batch_tokens)
    return np.concatenate([ran.vectors for ran in run_in_slots(model, batches)])


def tokens_of(model: Encoder, texts: Sequence[str]) -> TokenBlock:
    """Return the tokens of the texts."""
    return model.tokenize(texts)


class RawEngine:
    """The engine without a queue; one job at a time or many together."""

    def __init__(self, model: Encoder) -> None:
        self._model = model
        self._ended = threading.Semaphore(0)
        self._error: BaseException | None = None
        self._callbacks = _Counted(self._ended)
        self.engine = Engine({model.info.name: model}, crashed=self._crash)
        self.engine.start()

    def encode(self, texts: Sequence[str], texts_a_job: int = 1) -> Matrix:
        """Submit all texts in order, `texts_a_job` to a job, and wait for all jobs."""
        jobs = [
            Job(
                str(at),
                list(texts[at : at + texts_a_job]),
                _PLAIN,
                self._model.info,
                callbacks=self._callbacks,
            )
            for at in range(0, len(texts), texts_a_job)
        ]
        for job in jobs:
            self.engine.submit(job)
        for _ in jobs:
            self._ended.acquire()
        if self._error is not None:
            raise RuntimeError("the engine died") from self._error
        return np.concatenate([job.vectors for job in jobs if job.vectors is not None])

    def close(self) -> None:
        self.engine.close(10.0)

    def _crash(self, error: BaseException) -> None:
        # Release the waiting caller: there will be no further results.
        self._error = error
        self._ended.release(1_000_000)


class _Counted(JobCallbacks):
    """Counts completed jobs, and leaves their vectors to the caller."""

    def __init__(self, ended: threading.Semaphore) -> None:
        self._ended = ended

    def admit(self, job: Job) -> bool:
        return True

    def completed(self, jobs: Sequence[Job]) -> None:
        self._ended.release(len(jobs))


if __name__ == "__main__":
    print(encoder().info.path)
