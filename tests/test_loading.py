"""Loading models for the engine, so that its device thread computes at full speed."""

from __future__ import annotations

import sys
import threading

import pytest

from worker import loading
from worker.contract.errors import ModelUnavailable
from worker.contract.models import ModelSpec
from worker.contract.settings import Settings


def test_a_call_runs_on_a_thread_that_is_gone_afterwards() -> None:
    thread = loading.on_passing_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_no_thread_keeps_the_interpreter_for_milliseconds() -> None:
    before = sys.getswitchinterval()
    try:
        loading.shorten_turns()
        assert sys.getswitchinterval() == pytest.approx(1e-4)
    finally:
        sys.setswitchinterval(before)


def test_what_the_call_raises_reaches_the_caller() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loading.on_passing_thread(interrupted)


def test_models_are_loaded_where_they_leave_no_threads_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran_on: list[threading.Thread] = []

    def load(*_: object, **__: object) -> None:
        ran_on.append(threading.current_thread())
        raise ModelUnavailable("not there")

    monkeypatch.setattr("worker.encoder.load", load)
    with pytest.raises(ModelUnavailable):
        loading.load_encoders(Settings(models=(ModelSpec("tiny"),)))
    assert not ran_on[0].is_alive()
