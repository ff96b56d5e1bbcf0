"""Celery, whole: the same calls against our worker, on both transports, and against a stock one.

Every test runs three times and expects the same outcome each time. The stock worker is Celery's
own prefork pool on kombu's own transport, with the same task, which encodes on the spot.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from celery import chain, chord, group
from celery.exceptions import (
    ChordError,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
)
from celery.result import AsyncResult

from tests.conftest import running
from tests.integration import users_app
from tests.integration.stand import (
    ANSWER_S,
    MARKER,
    TEXTS,
    Events,
    Stand,
    embed_at,
    held_texts,
    send,
    send_by_name,
    vectors,
)
from tests.processes import Process, ValkeyServer, eventually
from worker.contract.errors import JobFailed
from worker.contract.outcomes import Matrix
from worker.service import default_service
from worker.tasks import embed

APP = "tests.integration.users_app"
STOCK = {"STOCK": "1"}
#: Arguments and environment of a worker. Users add tasks by an application of their own or by -I.
KINDS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "our worker": (("-l", "debug", "-I", APP), {"APP": "worker"}),
    "our worker on the stock transport": (("-l", "debug"), STOCK),
    "stock worker": ((), STOCK | {"POOL": "prefork"}),
}

pytestmark = pytest.mark.timeout(60)


@dataclass
class Table(Stand):
    """One worker, and all its events."""

    worker: Process
    events: Events


@pytest.fixture(scope="module", params=KINDS)
def worker_of_a_kind(request: pytest.FixtureRequest, valkey: ValkeyServer) -> Iterator[Table]:
    arguments, env = KINDS[request.param]
    with running() as processes, valkey.client() as client, embed_at(valkey.url) as app:
        client.flushall()
        events = Events(app)
        worker = Stand(processes, app, client).start(
            "-E", *arguments, EMBEDQ_TASK_THREADS="1", **env
        )
        send().get(timeout=ANSWER_S)
        yield Table(processes, app, client, worker, events)
        events.close()
        if "POOL" in env:
            # Celery's own pool may stop slowly, even without work.
            worker.kill()
        else:
            assert worker.stop() == 0
        # No event and no log line shows the text of a job.
        assert held_texts(events.seen) == []
        assert MARKER not in worker.log()


@pytest.fixture
def stand(worker_of_a_kind: Table) -> Iterator[Table]:
    """An idle worker without notes."""
    stand = worker_of_a_kind
    stand.client.delete(users_app.NOTES)
    yield stand
    eventually(stand.idle, ANSWER_S)
    assert stand.worker.running


@pytest.fixture(scope="module")
def expected() -> Matrix:
    """The vectors of TEXTS by a service of this process."""
    return default_service().encode(TEXTS)


def same(result: Any, expected: Matrix) -> bool:
    return bool(np.abs(vectors(result) - expected).max() < 1e-5)


# -- calling ------------------------------------------------------------------------------------


def test_delay_and_get(stand: Table, expected: Matrix) -> None:
    job = embed.delay(TEXTS)
    assert same(job.get(timeout=ANSWER_S), expected)
    assert job.state == "SUCCESS"
    eventually(lambda: stand.record(job.id) == ("succeeded", None))


def test_one_string_is_a_list_of_one(stand: Table, expected: Matrix) -> None:
    assert same(embed.delay(TEXTS[0]).get(timeout=ANSWER_S), expected[:1])
    assert same(embed.delay(input=TEXTS[1]).get(timeout=ANSWER_S), expected[1:])


def test_vectors_as_base64(stand: Table, expected: Matrix) -> None:
    assert same(embed.delay(TEXTS, encoding_format="base64").get(timeout=ANSWER_S), expected)


def test_apply_and_a_plain_call(expected: Matrix) -> None:
    assert same(embed(TEXTS), expected)
    assert same(embed.apply((TEXTS,)).get(), expected)


def test_a_plain_call_inside_the_worker(stand: Table) -> None:
    assert users_app.embed_here.delay(["one", "two"]).get(timeout=ANSWER_S) == [2, 2]
    # By the running engine: the model was loaded once.
    assert stand.worker.log().count("Model all-MiniLM-L6-v2: ") == 1


def test_send_task_from_a_program_without_our_code(
    stand: Table, expected: Matrix, tmp_path: Path
) -> None:
    program = tmp_path / "client.py"
    program.write_text(
        f"""
import json, sys
sys.modules["worker"] = None
from celery import Celery
app = Celery(broker={stand.url!r}, backend={stand.url!r})
app.conf.task_default_queue = "embedq"
good = app.send_task("embedq.embed", args=[{TEXTS!r}])
bad = app.send_task("embedq.embed", args=[{TEXTS!r}], kwargs={{"model": "nobody's"}})
result = good.get(timeout={ANSWER_S})
try:
    bad.get(timeout={ANSWER_S})
except Exception as error:
    failure = [type(error).__name__, error.args[0]]
print(json.dumps({{"result": result, "failure": failure}}))
"""
    )
    client = stand.processes.python(str(program), env={"PYTHONPATH": None}, cwd=tmp_path)
    assert client.wait() == 0, client.log()
    answer = json.loads(client.log().splitlines()[-1])
    assert same(answer["result"], expected)
    assert answer["failure"] == ["JobFailed", "model_not_found"]


@pytest.mark.parametrize(
    "when",
    [
        {"countdown": 0.5},
        {"eta": lambda: datetime.now(UTC) + timedelta(seconds=0.5)},
    ],
    ids=["countdown", "eta"],
)
def test_a_job_for_later(stand: Table, expected: Matrix, when: dict[str, Any]) -> None:
    options = {name: value() if callable(value) else value for name, value in when.items()}
    asked = time.monotonic()
    job = send(**options)
    assert same(job.get(timeout=ANSWER_S), expected)
    assert time.monotonic() - asked > 0.4


def test_priority_and_a_far_expiry_change_nothing(stand: Table, expected: Matrix) -> None:
    assert same(send(priority=5, expires=600).get(timeout=ANSWER_S), expected)


def test_an_ignored_result_is_not_stored(stand: Table) -> None:
    job = send(ignore_result=True)
    eventually(lambda: stand.record(job.id) == ("succeeded", None), ANSWER_S)
    assert AsyncResult(job.id, app=stand.app).state == "PENDING"


# -- failing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "options", "code"),
    [
        (TEXTS, {"model": "nobody's"}, "model_not_found"),
        (TEXTS, {"dimensions": 7}, "invalid_dimensions"),
        (TEXTS, {"colour": "red"}, "invalid_request"),
        ([], {}, "invalid_request"),
        ([MARKER] * 4097, {}, "invalid_request"),
        ([5, None, {"text": MARKER}], {}, "invalid_text"),
        ([f"{MARKER} word" * 400], {"truncate": False}, "text_too_long"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_job_that_cannot_be_done(
    stand: Table, texts: list[Any], options: dict[str, Any], code: str
) -> None:
    job = embed.apply_async((texts,), options)
    with pytest.raises(JobFailed) as caught:
        job.get(timeout=ANSWER_S)
    assert caught.value.code == code
    assert job.state == "FAILURE"
    eventually(lambda: stand.record(job.id) == ("failed", code))


@pytest.mark.parametrize(
    ("args", "kwargs"), [([TEXTS, "second"], {}), ([], {}), ([], {"texts": TEXTS})]
)
def test_a_call_with_the_wrong_arguments(
    stand: Table, args: list[Any], kwargs: dict[str, Any]
) -> None:
    job = send_by_name(stand.app, *args, kwargs=kwargs)
    with pytest.raises(TypeError):
        job.get(timeout=ANSWER_S)


def test_texts_that_cannot_be_embedded_fail_alone(stand: Table, expected: Matrix) -> None:
    result = send([TEXTS[0], 5, "\ud800", TEXTS[1]]).get(timeout=ANSWER_S)
    rows = result["embeddings"]
    assert np.abs(np.array([rows[0], rows[3]]) - expected).max() < 1e-5
    assert rows[1] is rows[2] is None
    assert [(error["index"], error["code"]) for error in result["errors"]] == [
        (1, "invalid_text"),
        (2, "invalid_text"),
    ]


def test_a_huge_text_is_cut_and_marked(stand: Table) -> None:
    result = send([TEXTS[0], f"{MARKER} word " * 800_000]).get(timeout=ANSWER_S)
    assert len(vectors(result)) == 2
    assert result["truncated"] == [1]


# -- workflows ----------------------------------------------------------------------------------


def test_chain(stand: Table) -> None:
    steps = users_app.write_texts.s(3), embed.s(), users_app.count.s()
    assert chain(*steps)().get(timeout=ANSWER_S) == 3


def test_group(stand: Table, expected: Matrix) -> None:
    results = group(embed.s([text]) for text in TEXTS)().get(timeout=ANSWER_S)
    assert all(same(result, expected[row : row + 1]) for row, result in enumerate(results))


def test_chord(stand: Table) -> None:
    header = [embed.s(TEXTS), embed.s(TEXTS[:1]), embed.s(TEXTS)]
    assert chord(header)(users_app.counts.s()).get(timeout=ANSWER_S) == [2, 1, 2]


def test_chord_with_a_failing_header(stand: Table) -> None:
    header = [embed.s(TEXTS), embed.s(TEXTS, model="nobody's")]
    body = chord(header)(users_app.counts.s().on_error(users_app.note_failure.s("body")))
    with pytest.raises(ChordError, match="model_not_found"):
        # By id: a result that knows its header raises the header's failure at once.
        AsyncResult(body.id, app=stand.app).get(timeout=ANSWER_S)
    stand.noted("body", body.id)


def test_link(stand: Table) -> None:
    send(link=users_app.note_result.s("linked"))
    stand.noted("linked", 2)


@pytest.mark.parametrize("how", ["by id", "with the exception"])
def test_link_error(stand: Table, how: str) -> None:
    if how == "by id":
        link = users_app.note_failure.s("failed")
        expected: tuple[Any, ...] = ()
    else:
        link = users_app.note_exception.s("failed")
        message = "model 'x' is not served here; served: all-MiniLM-L6-v2"
        expected = ("JobFailed", ["model_not_found", message])
    job = embed.apply_async((TEXTS,), {"model": "x"}, link_error=link)
    stand.noted("failed", job.id, *expected)


def test_a_job_that_succeeds_calls_no_errback(stand: Table) -> None:
    job = send(link_error=users_app.note_failure.s("failed"))
    assert len(vectors(job.get(timeout=ANSWER_S))) == 2
    assert users_app.count.delay({"embeddings": [1]}).get(timeout=ANSWER_S) == 1
    assert stand.notes() == []


# -- users' own tasks ---------------------------------------------------------------------------


def test_a_users_task_succeeds_fails_and_is_retried(stand: Table) -> None:
    assert users_app.count.delay({"embeddings": [1, 2]}).get(timeout=ANSWER_S) == 2
    with pytest.raises(ValueError, match="told to"):
        users_app.fail.delay("told to").get(timeout=ANSWER_S)
    assert users_app.succeed_at.delay(2).get(timeout=ANSWER_S) == 2


def test_a_users_task_calls_embed(stand: Table) -> None:
    job_id = users_app.call_embed.delay(["one", "two"]).get(timeout=ANSWER_S)
    assert len(vectors(AsyncResult(job_id, app=stand.app).get(timeout=ANSWER_S))) == 2


def test_a_users_task_is_retried_and_becomes_a_job(stand: Table) -> None:
    assert users_app.become_embed.delay(["one", "two"]).get(timeout=ANSWER_S) == 2


def test_a_users_task_revoked_while_it_waits(stand: Table) -> None:
    running = users_app.sleep.delay(1)
    waiting = users_app.sleep.delay(0, "slept")
    stand.app.control.revoke(waiting.id, reply=True, timeout=ANSWER_S, limit=1)
    assert running.get(timeout=ANSWER_S) == 1
    with pytest.raises(TaskRevokedError):
        waiting.get(timeout=ANSWER_S)
    eventually(stand.idle)
    assert stand.notes() == []


# -- ending early -------------------------------------------------------------------------------


def test_a_job_revoked_while_it_waits(stand: Table, expected: Matrix) -> None:
    with stand.busy_device() as go_on:
        running = send()
        stand.wait_until_encoding()
        waiting = send()
        stand.app.control.revoke(waiting.id, reply=True, timeout=ANSWER_S, limit=1)
        go_on()
        assert same(running.get(timeout=ANSWER_S), expected)
    with pytest.raises(TaskRevokedError):
        waiting.get(timeout=ANSWER_S)
    stand.noted("task_revoked", waiting.id, False, False)
    eventually(lambda: stand.record(waiting.id) == ("cancelled", None))


def test_a_job_revoked_before_its_time(stand: Table) -> None:
    job = send(countdown=1)
    stand.app.control.revoke(job.id, reply=True, timeout=ANSWER_S, limit=1)
    with pytest.raises(TaskRevokedError):
        job.get(timeout=ANSWER_S)
    stand.noted("task_revoked", job.id, False, False)


def test_revoking_a_running_job_without_force_changes_nothing(
    stand: Table, expected: Matrix
) -> None:
    with stand.busy_device() as go_on:
        job = send()
        stand.wait_until_encoding()
        eventually(lambda: stand.inspect("active"), ANSWER_S)
        stand.app.control.revoke(job.id, reply=True, timeout=ANSWER_S, limit=1)
        go_on()
        assert same(job.get(timeout=ANSWER_S), expected)


def test_a_running_job_is_terminated(stand: Table) -> None:
    with stand.busy_device():
        job = send(link=users_app.note_result.s("linked"))
        stand.wait_until_encoding()
        eventually(lambda: stand.inspect("active"), ANSWER_S)
        stand.app.control.revoke(job.id, terminate=True, reply=True, timeout=ANSWER_S, limit=1)
        with pytest.raises(TaskRevokedError):
            job.get(timeout=ANSWER_S)
        stand.noted("task_revoked", job.id, True, False)
        eventually(stand.idle)
    assert len(vectors(send().get(timeout=ANSWER_S))) == 2
    assert stand.notes() == [["task_revoked", job.id, True, False]]
    eventually(lambda: stand.record(job.id) == ("cancelled", None))


def test_a_waiting_job_is_terminated(stand: Table, expected: Matrix) -> None:
    with stand.busy_device() as go_on:
        running = send()
        stand.wait_until_encoding()
        waiting = send()
        eventually(lambda: stand.inspect("reserved"), ANSWER_S)
        stand.app.control.revoke(waiting.id, terminate=True, reply=True, timeout=ANSWER_S, limit=1)
        go_on()
        assert same(running.get(timeout=ANSWER_S), expected)
    with pytest.raises(TaskRevokedError):
        waiting.get(timeout=ANSWER_S)
    eventually(lambda: [note[:2] for note in stand.notes()] == [["task_revoked", waiting.id]])


def test_a_job_that_has_expired(stand: Table) -> None:
    job = send(expires=datetime.now(UTC) - timedelta(days=400))
    with pytest.raises(TaskRevokedError):
        job.get(timeout=ANSWER_S)
    stand.noted("task_revoked", job.id, False, True)
    eventually(lambda: stand.record(job.id) == ("cancelled", None))


def test_a_job_that_expires_while_it_waits(stand: Table, expected: Matrix) -> None:
    with stand.busy_device() as go_on:
        running = send()
        stand.wait_until_encoding()
        expiry = datetime.now(UTC) + timedelta(seconds=0.6)
        waiting = send(expires=expiry)
        eventually(lambda: datetime.now(UTC) > expiry)
        go_on()
        assert same(running.get(timeout=ANSWER_S), expected)
    with pytest.raises(TaskRevokedError):
        waiting.get(timeout=ANSWER_S)
    stand.noted("task_revoked", waiting.id, False, True)


def test_a_hard_time_limit(stand: Table, request: pytest.FixtureRequest) -> None:
    with stand.busy_device():
        job = send(time_limit=1, link_error=users_app.note_failure.s("failed"))
        with pytest.raises(TimeLimitExceeded) as caught:
            job.get(timeout=ANSWER_S)
        assert caught.value.args == (1,)
    stand.noted("failed", job.id)
    ends = {("failed", "time_limit")}
    if "stock worker" in request.node.name:
        # The pool may notice later that its killed process is gone, and report that instead.
        ends.add(("failed", "internal_error"))
    eventually(lambda: stand.record(job.id) in ends, message=lambda: str(stand.record(job.id)))
    assert len(vectors(send().get(timeout=ANSWER_S))) == 2


def test_a_soft_time_limit(stand: Table) -> None:
    with stand.busy_device():
        job = send(soft_time_limit=1, link_error=users_app.note_failure.s("failed"))
        with pytest.raises(SoftTimeLimitExceeded) as caught:
            job.get(timeout=ANSWER_S)
        assert caught.value.args == ()
    stand.noted("failed", job.id)
    eventually(lambda: stand.record(job.id) == ("failed", "time_limit"))


# -- watching -----------------------------------------------------------------------------------


def test_signals(stand: Table) -> None:
    users_app.listen.delay().get(timeout=ANSWER_S)
    try:
        send().get(timeout=ANSWER_S)
        eventually(lambda: len(stand.notes()) == 3)
        good = stand.notes()
        with pytest.raises(JobFailed):
            embed.delay(TEXTS, model="x").get(timeout=ANSWER_S)
        eventually(lambda: len(stand.notes()) == 6)
    finally:
        users_app.stop_listening.delay().get(timeout=ANSWER_S)
    assert good == [
        ["task_prerun", ["args", "kwargs", "task_id"]],
        ["task_success", ["result"]],
        ["task_postrun", ["args", "kwargs", "retval", "state", "task_id"]],
    ]
    assert [name for name, _ in stand.notes()[3:]] == [
        "task_prerun",
        "task_failure",
        "task_postrun",
    ]


def test_events(stand: Table) -> None:
    good, bad = send(), embed.apply_async((TEXTS,), {"model": "x"})
    good.get(timeout=ANSWER_S)
    late = send(expires=datetime.now(UTC) - timedelta(days=1))
    begun = ["task-received", "task-started"]
    for job, kinds in (
        (good, [*begun, "task-succeeded"]),
        (bad, [*begun, "task-failed"]),
        (late, ["task-revoked"]),
    ):
        eventually(
            lambda job=job, kinds=kinds: stand.events.of(job.id) == kinds,
            message=lambda job=job: str(stand.events.of(job.id)),
        )


def test_inspect_shows_the_truth_and_no_texts(stand: Table) -> None:
    with stand.busy_device() as go_on:
        running = send()
        stand.wait_until_encoding()
        # By name: this client passes no `argsrepr`.
        waiting = send_by_name(stand.app, TEXTS)
        later = send_by_name(stand.app, TEXTS, countdown=3)
        eventually(lambda: len(stand.inspect("scheduled")) == 1, ANSWER_S)
        eventually(lambda: stand.inspect("active"), ANSWER_S)
        active = stand.inspect("active")
        reserved = stand.inspect("reserved")
        known = stand.inspect("query_task", ids=[running.id, waiting.id, later.id])
        scheduled = stand.inspect("scheduled")
        stats = stand.inspect("stats")
        registered = stand.inspect("registered")
        revoked = stand.app.control.revoke(later.id, reply=True, timeout=ANSWER_S, limit=1)
        go_on()
        running.get(timeout=ANSWER_S)
        waiting.get(timeout=ANSWER_S)
    assert [request["id"] for request in active] == [running.id]
    assert waiting.id in [request["id"] for request in reserved]
    assert {id_: state for id_, (state, _) in known.items()} == {
        running.id: "active",
        waiting.id: "reserved",
        later.id: "scheduled",
    }
    assert active[0]["time_start"]
    assert [entry["request"]["id"] for entry in scheduled] == [later.id]
    assert stats["total"]["embedq.embed"] > 0
    assert set(users_app.names()) <= set(registered)
    assert held_texts([active, reserved, known, scheduled, stats, revoked]) == []


# -- control ------------------------------------------------------------------------------------


def test_ping(stand: Table) -> None:
    assert list(stand.app.control.ping(timeout=ANSWER_S, limit=1)[0].values()) == [{"ok": "pong"}]


def control(stand: Table, command: str, *args: Any) -> Any:
    call = getattr(stand.app.control, command)
    answer = call(*args, reply=True, timeout=ANSWER_S, limit=1)
    return next(iter(answer[0].values()))


def test_a_rate_limit(stand: Table) -> None:
    set_ = control(stand, "rate_limit", "embedq.embed", "5/s")
    try:
        assert set_ == {"ok": "new rate limit set successfully"}
        begun = time.monotonic()
        for job in [send() for _ in range(5)]:
            job.get(timeout=ANSWER_S)
        assert time.monotonic() - begun > 0.7
    finally:
        control(stand, "rate_limit", "embedq.embed", 0)


def test_a_time_limit_for_all_jobs(stand: Table) -> None:
    # Celery's requests read it when the worker connects, so the change has no effect before that.
    set_ = control(stand, "time_limit", "embedq.embed", 60, 120)
    try:
        assert set_ == {"ok": "time limits set successfully"}
        assert len(vectors(send().get(timeout=ANSWER_S))) == 2
    finally:
        control(stand, "time_limit", "embedq.embed")


def test_waiting_does_not_count_towards_a_time_limit(stand: Table) -> None:
    with stand.busy_device() as go_on:
        running = send()
        stand.wait_until_encoding()
        # Long enough that a slow machine can encode it.
        waiting = send(time_limit=4)
        begun = time.monotonic()
        eventually(lambda: time.monotonic() - begun > 4.2)
        go_on()
        assert len(vectors(running.get(timeout=ANSWER_S))) == 2
    assert len(vectors(waiting.get(timeout=ANSWER_S))) == 2
