"""The texts of shared batches, and each job's part of the result."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.stand import Start, assert_vectors, busy, texts, wait_until_tokenised
from tests.fakes import (
    FakeEncoder,
    RecordingSink,
    job_of,
    model_info,
    vector_of,
)
from tests.processes import eventually


def test_every_text_gets_its_own_vector_in_its_place(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    given = {f"{n}": texts(n % 7 + 1, first=10 * n) for n in range(100)}
    for job_id, some in given.items():
        engine.submit(job_of(some, job_id))
    for job_id, some in given.items():
        outcome = sink.outcome(job_id)
        assert_vectors(outcome.vectors, some)
        assert outcome.vectors.dtype == np.float32
        assert outcome.prompt_tokens == 4 * len(some)
        assert outcome.errors == []
    assert len(encoder.seen) == engine.totals.texts == sum(map(len, given.values()))
    assert engine.totals.tokens == 4 * engine.totals.texts
    assert engine.totals.batches == len(encoder.batches)


def test_a_one_text_job_behind_a_large_one_is_in_the_next_batch(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    large, small = job_of(texts(4096), "large"), job_of(["me"], "small")
    with busy(engine, encoder):
        engine.submit(large)
        engine.submit(small)
        eventually(lambda: large.waiting and small.waiting)
    sink.outcome("small")
    assert "me" in encoder.batches[1]
    assert not large.ended
    assert len(encoder.batches[1]) > 1


def test_texts_of_many_jobs_share_a_batch(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    jobs = [job_of([f"word {n}"], f"{n}") for n in range(16)]
    with busy(engine, encoder):
        for job in jobs:
            engine.submit(job)
        wait_until_tokenised(*jobs)
    sink.outcome("15")
    assert len(encoder.batches) == 2
    assert len(encoder.batches[1]) == 16


def test_no_batch_is_above_the_budget_but_a_text_that_is(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    engine.submit(job_of([*texts(50), "word " * 60, *texts(50)], "a"))
    sink.outcome("a")
    for batch in encoder.batches:
        tokens = sum(len(text.split()) for text in batch)
        assert tokens <= 32 or len(batch) == 1


def test_a_job_that_must_run_alone_does(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    suspect, others = job_of(["suspect"], "s", isolated=True), job_of(texts(4), "o")
    with busy(engine, encoder):
        engine.submit(others)
        wait_until_tokenised(others)
        engine.submit(suspect)
    sink.outcome("o")
    sink.outcome("s")
    assert ["suspect"] in encoder.batches


def test_models_take_turns(start: Start, sink: RecordingSink) -> None:
    first, second = FakeEncoder(model_info("first")), FakeEncoder(model_info("second"))
    order: list[str] = []
    first.before = lambda _: order.append("first")
    second.before = lambda _: order.append("second")
    engine = start(first, second)
    jobs = [job_of(texts(40), encoder.info.name, info=encoder.info) for encoder in (first, second)]
    with busy(engine, first):
        for job in jobs:
            engine.submit(job)
        wait_until_tokenised(*jobs)
    for job in jobs:
        assert_vectors(sink.outcome(job.id).vectors, texts(40))
    assert order[:8] == ["second", "first"] * 4
    assert set(engine.budgets) == {"first", "second"}


def test_prompts_of_different_jobs_do_not_mix(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    prompts = [None, "query:", "passage:", None, "query:"]
    jobs = [job_of(texts(3), f"{n}", prompt=prompt) for n, prompt in enumerate(prompts)]
    with busy(engine, encoder):
        for job in jobs:
            engine.submit(job)
        wait_until_tokenised(*jobs)
    for job in jobs:
        assert_vectors(sink.outcome(job.id).vectors, texts(3), prompt=job.prompt or "")
    assert any("query: text 0 of some" in b and "text 0 of some" in b for b in encoder.batches)


def test_jobs_with_and_without_normalisation_share_a_batch(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    unit, raw = job_of(texts(2), "unit"), job_of(texts(2), "raw", normalize=False)
    with busy(engine, encoder):
        engine.submit(unit)
        engine.submit(raw)
        wait_until_tokenised(unit, raw)
    assert_vectors(sink.outcome("unit").vectors, texts(2))
    assert_vectors(sink.outcome("raw").vectors, texts(2), normalize=False)
    assert len(encoder.batches) == 2


@pytest.mark.parametrize("normalize", [True, False])
def test_a_smaller_size_is_cut_and_then_normalised_again(
    start: Start, encoder: FakeEncoder, sink: RecordingSink, normalize: bool
) -> None:
    engine = start(encoder)
    engine.submit(job_of(texts(3), "a", dimensions=4, normalize=normalize))
    cut = np.stack([vector_of(text, normalize=False)[:4] for text in texts(3)])
    if normalize:
        cut /= np.linalg.norm(cut, axis=1, keepdims=True)
    found = sink.outcome("a").vectors
    np.testing.assert_allclose(found, cut, rtol=1e-6)
    assert found.flags.c_contiguous


def test_texts_that_were_cut_are_named(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    start(encoder).submit(job_of(["short", "word " * 65, "word " * 64, "word " * 999], "a"))
    assert sink.outcome("a").truncated == [1, 3]
    assert sink.outcome("a").prompt_tokens == 1 + 3 * 64


def test_a_job_says_the_tokens_of_each_text_where_it_was_asked(
    start: Start, encoder: FakeEncoder, sink: RecordingSink
) -> None:
    engine = start(encoder)
    mixed = [*texts(700), "a", None, "one two three"]
    engine.submit(job_of(mixed, "asked", token_counts=True))
    engine.submit(job_of(["a"], "plain"))
    outcome = sink.outcome("asked")
    assert len(outcome.token_counts) == len(mixed)
    assert sum(outcome.token_counts) == outcome.prompt_tokens
    assert [outcome.token_counts[at] for at in (0, 699, 700, 701, 702)] == [4, 4, 1, 0, 3]
    assert not sink.outcome("plain").token_counts
