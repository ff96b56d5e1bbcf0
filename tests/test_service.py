"""The engine in one's own process: on a fake model, and on the packaged one."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.fakes import DEADLINE, NAN, POISON, FakeEncoder, model_info, vector_of
from tests.processes import eventually
from worker import service as module
from worker.contract.errors import InvalidJob, JobFailed, ModelUnavailable
from worker.contract.jobs import JobOptions
from worker.contract.models import ModelSpec
from worker.contract.settings import DEFAULT_MODEL_NAME, Settings
from worker.encoder.reference import Reference
from worker.service import (
    EmbeddingService,
    EngineLost,
    ServiceClosed,
    TextsFailed,
    default_service,
)


class Loader:
    """Replaces the loader of models: counts, waits, fails."""

    def __init__(self) -> None:
        self.encoder = FakeEncoder(model_info(batch_tokens=64))
        self.settings: list[Settings] = []
        self.began, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.error: Exception | None = None

    def __call__(self, settings: Settings) -> dict[str, FakeEncoder]:
        self.settings.append(settings)
        self.began.set()
        assert self.go_on.wait(DEADLINE)
        if self.error is not None:
            raise self.error
        return {"fake": self.encoder}


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    loader = Loader()
    monkeypatch.setattr(module, "load_encoders", loader)
    return loader


@pytest.fixture
def embedder(loader: Loader) -> Iterator[EmbeddingService]:
    """A service on the fake model."""
    with EmbeddingService() as embedder:
        yield embedder


@pytest.fixture(scope="module")
def real() -> Iterator[EmbeddingService]:
    with EmbeddingService() as service:
        yield service


@pytest.fixture(scope="module")
def library() -> Reference:
    return Reference(ModelSpec(DEFAULT_MODEL_NAME))


def in_threads(count: int, call: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(call, range(count), timeout=DEADLINE))


# -- loading --------------------------------------------------------------------------------


def test_nothing_is_loaded_before_the_first_call(loader: Loader) -> None:
    with EmbeddingService():
        pass
    assert loader.settings == []


def test_first_calls_from_many_threads_load_the_model_once(
    embedder: EmbeddingService, loader: Loader
) -> None:
    vectors = in_threads(8, lambda n: embedder.encode([f"text {n}"]))
    assert len(loader.settings) == 1
    for number, found in enumerate(vectors):
        np.testing.assert_allclose(found[0], vector_of(f"text {number}"), rtol=1e-6)


def test_first_calls_from_one_event_loop_load_the_model_once_and_do_not_block_it(
    embedder: EmbeddingService, loader: Loader
) -> None:
    loader.go_on.clear()

    async def main() -> list[list[float]]:
        calls = [asyncio.create_task(embedder.get_embedding(f"text {n}")) for n in range(64)]
        await asyncio.to_thread(loader.began.wait, DEADLINE)
        # The loop runs while the model loads, and its threads are free for others.
        assert await asyncio.to_thread(lambda: "free") == "free"
        loader.go_on.set()
        return await asyncio.gather(*calls)

    assert len(asyncio.run(main())) == 64
    assert len(loader.settings) == 1


def test_a_caller_who_gives_up_while_the_model_loads_does_not_stop_it_for_others(
    embedder: EmbeddingService, loader: Loader
) -> None:
    loader.go_on.clear()

    async def main() -> list[float]:
        first, second = (asyncio.create_task(embedder.get_embedding(text)) for text in "ab")
        await asyncio.to_thread(loader.began.wait, DEADLINE)
        first.cancel()
        await asyncio.wait([first])
        loader.go_on.set()
        return await second

    assert len(asyncio.run(main())) == 6
    assert loader.encoder.seen == ["b"]


def test_a_model_that_cannot_be_loaded_fails_each_call_until_it_can(
    embedder: EmbeddingService, loader: Loader
) -> None:
    loader.error = ModelUnavailable("not there")
    with pytest.raises(ModelUnavailable):
        embedder.encode(["a"])
    with pytest.raises(ModelUnavailable):
        asyncio.run(embedder.get_embedding("a"))
    loader.error = None
    assert embedder.encode(["a"]).shape == (1, 6)
    assert len(loader.settings) == 3


def test_services_with_other_settings_are_others(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDQ_DEVICE", "cuda:1")
    with EmbeddingService() as plain, EmbeddingService("some/model", device="cpu") as other:
        plain.encode(["a"])
        other.encode(["a"])
        assert plain._engine is not other._engine
    assert [settings.device for settings in loader.settings] == ["cuda:1", "cpu"]
    assert [settings.models[0].name for settings in loader.settings] == [
        DEFAULT_MODEL_NAME,
        "some/model",
    ]


def test_the_default_service_of_a_process_is_one(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(EmbeddingService):
        def __init__(self) -> None:
            # Long enough for the others to get here, too.
            threading.Event().wait(0.05)
            super().__init__()

    monkeypatch.setattr(module, "EmbeddingService", Slow)
    module._default_service.cache_clear()
    services = in_threads(8, lambda _: default_service())
    assert len(set(services)) == 1
    services[0].close()
    module._default_service.cache_clear()


def _encode_in_child(answers: Any) -> None:
    with default_service() as service:
        answers.put(service.encode(["child"]).shape)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_default_service_of_its_own(loader: Loader) -> None:
    module._default_service.cache_clear()
    default_service().encode(["parent"])
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_encode_in_child, args=(answers,), daemon=True)
    child.start()
    child.join(DEADLINE)
    try:
        assert not child.is_alive(), "it waits for threads of its parent"
        assert answers.get() == (1, 6)
    finally:
        child.kill()
        default_service().close()
        module._default_service.cache_clear()


# -- sharing batches ------------------------------------------------------------------------


def test_concurrent_coroutines_share_batches(embedder: EmbeddingService, loader: Loader) -> None:
    async def main() -> list[list[float]]:
        return await asyncio.gather(*(embedder.get_embedding(f"text {n}") for n in range(64)))

    embedder.encode(["loaded"])
    with loader.encoder.held():
        busy = threading.Thread(target=embedder.encode, args=(["busy"],))
        busy.start()
        loader.encoder.wait_until_busy()
        answer = ThreadPoolExecutor(1).submit(asyncio.run, main())
        eventually(lambda: embedder._engine and embedder._engine.waiting_tokens == 128)
    vectors = answer.result(DEADLINE)
    busy.join(DEADLINE)
    assert len(loader.encoder.batches) == 2 + 2
    for number, vector in enumerate(vectors):
        np.testing.assert_allclose(vector, vector_of(f"text {number}"), rtol=1e-6)


def test_more_texts_than_a_job_may_have_come_back_in_order(embedder: EmbeddingService) -> None:
    given = [f"text {n}" for n in range(5000)]
    found = embedder.encode(given)
    assert found.shape == (5000, 6)
    for at in (0, 255, 256, 4095, 4096, 4999):
        np.testing.assert_allclose(found[at], vector_of(given[at]), rtol=1e-6)


def test_many_vectors_become_lists_away_from_the_event_loop(
    embedder: EmbeddingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    lists = module._lists

    def noted(vectors: Any) -> Any:
        threads.append(threading.current_thread())
        return lists(vectors)

    monkeypatch.setattr(module, "_lists", noted)
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", 6 * 10)
    given = [f"text {n}" for n in range(11)]
    found = asyncio.run(embedder.get_embeddings(given))
    assert threads
    assert threads[0] is not threading.current_thread()
    np.testing.assert_allclose(found, [vector_of(text) for text in given], rtol=1e-6)
    asyncio.run(embedder.get_embeddings(given[:10]))
    assert len(threads) == 1


def test_a_vector_does_not_keep_its_whole_batch_in_memory(embedder: EmbeddingService) -> None:
    found = in_threads(8, lambda n: embedder.encode([f"text {n}"]))
    assert all(vectors.base is None and vectors.flags.owndata for vectors in found)


# -- forms ----------------------------------------------------------------------------------


def test_one_string_is_one_text(embedder: EmbeddingService) -> None:
    assert embedder.encode("hello").shape == (1, 6)
    assert len(asyncio.run(embedder.get_embeddings("hello"))) == 1
    assert isinstance(asyncio.run(embedder.get_embedding("hello"))[0], float)


def test_no_texts_have_no_vectors(embedder: EmbeddingService) -> None:
    assert embedder.encode([]).shape == (0, 6)
    assert embedder.encode([], dimensions=4).shape == (0, 4)
    assert asyncio.run(embedder.get_embeddings([])) == []
    with pytest.raises(InvalidJob, match="no text"):
        embedder.run([])


def test_options_are_those_of_the_task(embedder: EmbeddingService) -> None:
    found = embedder.encode(["a"], prompt="query:", normalize=False)
    np.testing.assert_array_equal(found[0], vector_of("a", prompt="query:", normalize=False))
    assert len(asyncio.run(embedder.get_embedding("a", dimensions=2))) == 2


WRONG = [
    ({"dimensions": 3}, "invalid_dimensions", "dimensions"),
    ({"model": "other"}, "model_not_found", "model"),
    ({"prompt_name": "query"}, "invalid_prompt", "prompt_name"),
    ({"truncat": True}, "invalid_request", "truncat"),
]


@pytest.mark.parametrize(("options", "code", "field"), WRONG)
def test_wrong_options_are_named(
    embedder: EmbeddingService, options: dict[str, Any], code: str, field: str
) -> None:
    for call in (
        lambda: embedder.encode(["a"], **options),
        lambda: asyncio.run(embedder.get_embedding("a", **options)),
    ):
        with pytest.raises(InvalidJob) as caught:
            call()
        assert (caught.value.code, caught.value.field) == (code, field)


# -- failures -------------------------------------------------------------------------------


def test_a_call_in_which_some_texts_fail_says_which(embedder: EmbeddingService) -> None:
    given: list[Any] = ["fine", POISON, 3, "fine", NAN]
    for call in (embedder.encode, lambda texts: asyncio.run(embedder.get_embeddings(texts))):
        with pytest.raises(TextsFailed) as caught:
            call(given)
        assert [(error.index, error.code) for error in caught.value.errors] == [
            (1, "encode_failed"),
            (2, "invalid_text"),
            (4, "non_finite_vector"),
        ]
        assert caught.value.code == "encode_failed"


def test_a_call_in_which_every_text_fails_fails_with_the_first_code(
    embedder: EmbeddingService,
) -> None:
    for call in (embedder.encode, lambda texts: asyncio.run(embedder.get_embeddings(texts))):
        with pytest.raises(JobFailed) as caught:
            call([7, POISON])
        assert caught.value.code == "invalid_text"


def test_a_coroutine_that_is_cancelled_costs_no_forward_pass(
    embedder: EmbeddingService, loader: Loader
) -> None:
    embedder.encode(["loaded"])

    async def main() -> None:
        kept = asyncio.create_task(embedder.get_embedding("kept"))
        gone = asyncio.create_task(embedder.get_embedding("gone"))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        leave.set()
        await kept

    leave = threading.Event()
    loader.encoder.before = lambda _: leave.wait(DEADLINE)
    busy = threading.Thread(target=embedder.encode, args=(["busy"],))
    busy.start()
    eventually(lambda: "busy" in loader.encoder.seen)
    asyncio.run(main())
    busy.join(DEADLINE)
    assert loader.encoder.seen == ["loaded", "busy", "kept"]


def test_a_large_call_that_is_cancelled_costs_no_further_forward_pass(
    embedder: EmbeddingService, loader: Loader
) -> None:
    embedder.encode(["loaded"])
    engine = embedder._engine
    assert engine is not None

    async def main() -> None:
        with loader.encoder.held():
            large = asyncio.create_task(embedder.get_embeddings([f"text {n}" for n in range(3000)]))
            await asyncio.to_thread(_started, loader)
            large.cancel()
            with pytest.raises(asyncio.CancelledError):
                await large

    asyncio.run(main())
    embedder.encode(["after"])
    assert len(loader.encoder.batches) == 3
    assert engine.waiting_tokens == 0


def _started(loader: Loader) -> None:
    loader.encoder.wait_until_busy()


def test_a_caller_may_give_up_at_the_last_moment(
    embedder: EmbeddingService, loader: Loader
) -> None:
    embedder.encode(["loaded"])
    engine = embedder._engine
    assert engine is not None
    with loader.encoder.held():
        busy = threading.Thread(target=embedder.encode, args=(["busy"],))
        busy.start()
        loader.encoder.wait_until_busy()
        first, second = (embedder._submit(engine, [text], JobOptions()) for text in "ab")
        # Both end with the same batch; the first answer cancels the second call.
        first.add_done_callback(lambda _: second.cancel())
        eventually(lambda: engine.waiting_tokens == 2)
    busy.join(DEADLINE)
    assert first.result(DEADLINE)
    assert second.cancelled()
    assert embedder.encode(["after"]).shape == (1, 6)


def test_closing_answers_calls_that_wait(loader: Loader) -> None:
    embedder = EmbeddingService()
    embedder.encode(["loaded"])

    async def waiting() -> None:
        with pytest.raises(ServiceClosed):
            await embedder.get_embeddings(["waiting"])

    with ThreadPoolExecutor(4) as threads:
        with loader.encoder.held():
            running = threads.submit(embedder.encode, ["running"])
            loader.encoder.wait_until_busy()
            blocked = threads.submit(embedder.encode, ["blocked"])
            looped = threads.submit(asyncio.run, waiting())
            eventually(lambda: embedder._engine and embedder._engine.waiting_tokens >= 2)
            closed = threads.submit(embedder.close)
            eventually(lambda: embedder._closed)
        closed.result(DEADLINE)
        assert running.result(DEADLINE).shape == (1, 6)
        with pytest.raises(ServiceClosed):
            blocked.result(DEADLINE)
        looped.result(DEADLINE)
    embedder.close()
    for call in (
        lambda: embedder.encode(["late"]),
        lambda: asyncio.run(embedder.get_embedding("l")),
    ):
        with pytest.raises(ServiceClosed):
            call()


def test_closing_while_the_model_loads_waits_for_it_and_answers_callers(loader: Loader) -> None:
    embedder = EmbeddingService()
    loader.go_on.clear()
    with ThreadPoolExecutor(2) as threads:
        call = threads.submit(embedder.encode, ["a"])
        assert loader.began.wait(DEADLINE)
        closed = threads.submit(embedder.close)
        eventually(lambda: embedder._closed)
        loader.go_on.set()
        closed.result(DEADLINE)
        # The order is not known; the point is that it does not hang.
        error = call.exception(DEADLINE)
        assert error is None or isinstance(error, ServiceClosed)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_dies_answers_every_caller(
    embedder: EmbeddingService, loader: Loader
) -> None:
    embedder.encode(["loaded"])

    async def waiting() -> list[float]:
        return await embedder.get_embedding("waiting")

    with ThreadPoolExecutor(3) as threads:
        with loader.encoder.held():
            first = threads.submit(embedder.encode, ["running"])
            loader.encoder.wait_until_busy()
            others = [
                threads.submit(embedder.encode, ["blocked"]),
                threads.submit(asyncio.run, waiting()),
            ]
            eventually(lambda: embedder._engine and embedder._engine.waiting_tokens >= 2)
            loader.encoder.lost = True
        for call in (first, *others):
            with pytest.raises(EngineLost):
                call.result(DEADLINE)
    with pytest.raises(EngineLost):
        embedder.encode(["late"])


# -- the packaged model ---------------------------------------------------------------------


@pytest.mark.slow
def test_vectors_are_the_librarys_whatever_shared_their_batch(
    real: EmbeddingService, library: Reference
) -> None:
    given = [f"sentence number {n} " + "and more of it " * (n % 9) for n in range(64)]
    real.encode(["loaded"])
    engine = real._engine
    assert engine is not None
    before = engine.totals.batches

    async def main() -> list[list[float]]:
        return await asyncio.gather(*(real.get_embedding(text) for text in given))

    found = asyncio.run(main())
    assert engine.totals.batches - before < len(given) / 2, "callers share no batches"
    np.testing.assert_allclose(found, library.encode_alone(given), atol=1e-5, rtol=0)


def test_threads_get_the_librarys_vectors(real: EmbeddingService, library: Reference) -> None:
    given = [[f"thread {n} text {m}" for m in range(n + 1)] for n in range(8)]
    found = in_threads(8, lambda n: real.encode(given[n]))
    for some, vectors in zip(given, found, strict=True):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, library.encode_alone(some), atol=1e-5, rtol=0)


def test_a_text_that_cannot_be_encoded_as_utf8_fails_alone(real: EmbeddingService) -> None:
    with pytest.raises(TextsFailed) as caught:
        real.encode(["fine", "lone \ud800 surrogate", "fine"])
    assert [(error.index, error.code) for error in caught.value.errors] == [(1, "invalid_text")]
