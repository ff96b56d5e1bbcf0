"""Fixtures on real parts: Valkey, workers and the API as processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import redis

from tests import schedule
from tests.forked import ForkServer
from tests.processes import (
    START_TIMEOUT_S,
    Api,
    Process,
    Processes,
    ValkeyServer,
    answers,
    clean_environment,
    eventually,
    free_port,
    start_api,
    start_worker,
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control starts background programs with SIGINT ignored; the tests' own
    # programs would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Compiled bytecode is shared by all processes: those of a parallel run, workers and APIs.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Idle torch threads sleep: spinning, they would take the cores from other tests.
os.environ["OMP_WAIT_POLICY"] = "passive"

VALKEY = {"valkey", "redis_url", "redis_client", "valkey_server", "service"}
PROCESSES = {"processes", "worker_process", "api_process", "service"}
INTEGRATION = Path(__file__).parent / "integration"
#: The property of a test's report that names a real part used by the test.
REAL_PART = "real part"


@dataclass
class Service:
    """One Valkey, one worker with the packaged model, one API, shared by the tests of a module."""

    processes: Processes
    valkey: ValkeyServer
    worker: Process
    api: Api

    @property
    def broker_url(self) -> str:
        return self.valkey.url

    @property
    def url(self) -> str:
        return self.api.url


@contextmanager
def running() -> Iterator[Processes]:
    """Processes in a temporary folder with a short name: a socket's path is limited."""
    folder = Path(tempfile.mkdtemp(prefix="embedq-test-"))
    processes = Processes(folder)
    try:
        yield processes
    finally:
        processes.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """One Valkey for the whole run; take `redis_url` for a clean one."""
    with running() as processes:
        server = ValkeyServer(processes, processes.folder / "data", free_port(), persistent=False)
        server.start()
        yield server


@pytest.fixture
def redis_url(valkey: ValkeyServer) -> str:
    """The address of an empty Valkey."""
    with valkey.client() as client:
        client.flushall()
    return valkey.url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the empty Valkey at `redis_url`."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Starts programs that end with the test."""
    with running() as started:
        yield started


@pytest.fixture
def valkey_server(processes: Processes) -> Callable[..., ValkeyServer]:
    """Starts a Valkey of the test's own, with an append-only file, to be killed and restarted."""

    def start(*options: str, **fields: Any) -> ValkeyServer:
        folder = processes.folder / f"valkey{len(processes.started)}"
        server = ValkeyServer(processes, folder, free_port(), options=options, **fields)
        server.start()
        return server

    return start


@pytest.fixture
def worker_process(processes: Processes, redis_url: str) -> Callable[..., Process]:
    """Starts `celery -A worker worker`; options as in `start_worker`."""

    def start(*arguments: str, broker_url: str = redis_url, **options: Any) -> Process:
        return start_worker(processes, broker_url, *arguments, **options)

    return start


@pytest.fixture
def api_process(processes: Processes, redis_url: str) -> Callable[..., Api]:
    """Starts the API under gunicorn; options as in `start_api`."""

    def start(*arguments: str, broker_url: str = redis_url, **options: Any) -> Api:
        return start_api(processes, broker_url, *arguments, **options)

    return start


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A whole embedq for the tests of one module, ready: a worker takes seconds to start."""
    with running() as processes:
        server = ValkeyServer(processes, processes.folder / "data", free_port())
        server.start()
        env = {"EMBEDQ_FILES": str(processes.folder / "files")}
        worker = start_worker(processes, server.url, ready=None, env=env)
        api = start_api(processes, server.url, env=env)
        worker.wait_for_log(" ready.")
        eventually(lambda: answers(api, "/readyz"), START_TIMEOUT_S, message=processes.logs)
        yield Service(processes, server, worker, api)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-fork", action="store_true", help="start every worker from nothing")


def pytest_configure(config: pytest.Config) -> None:
    if sys.platform == "linux" and not config.option.no_fork and not hasattr(config, "workerinput"):
        config.add_cleanup(ForkServer(clean_environment()).close)
    # The tests do not use the results of `embedq tune` on this machine.
    os.environ["EMBEDQ_TUNED"] = os.devnull


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if PROCESSES & fixtures:
            item.add_marker(pytest.mark.integration)
        is_integration = item.get_closest_marker("integration") or INTEGRATION in item.path.parents
        if not (is_integration or item.get_closest_marker("slow") or "browser" in fixtures):
            item.add_marker(pytest.mark.fast)
    if hasattr(config, "workerinput"):
        schedule.in_order(items)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Wait for the other processes if a test needs the machine for itself."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    of_the_run = item.config._tmp_path_factory.getbasetemp().parent  # type: ignore[attr-defined]
    with schedule.turn(of_the_run, alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> schedule.Schedule:
    return schedule.Schedule(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record the real parts of a test, and show the processes' logs with a failure."""
    report = yield
    if call.when != "call":
        return report
    fixtures = set(getattr(item, "fixturenames", ()))
    if fixtures & VALKEY:
        report.user_properties.append((REAL_PART, "Valkey"))
    if item.get_closest_marker("integration"):
        report.user_properties.append((REAL_PART, "processes"))
    if report.failed:
        values = getattr(item, "funcargs", {}).values()
        found = {id(p): p for p in (getattr(value, "processes", value) for value in values)}
        for processes in found.values():
            if isinstance(processes, Processes):
                report.sections.append(("Logs of the processes", processes.logs()))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the tests that ran on real parts, in all processes of the run."""
    tests: dict[str, set[str]] = {"Valkey": set(), "processes": set()}
    for report in chain.from_iterable(terminalreporter.stats.values()):
        for name, part in getattr(report, "user_properties", ()):
            if name == REAL_PART and report.when == "call":
                tests[part].add(report.nodeid)
    terminalreporter.write_sep("-", "real parts")
    terminalreporter.write_line(
        f"{len(tests['Valkey'] | tests['processes'])} tests ran on real processes: "
        f"{len(tests['Valkey'])} with a real Valkey, "
        f"{len(tests['processes'])} with workers, APIs or other programs of their own"
    )
