"""Start, watch and kill real processes in tests; all of them end with the test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil
import redis
import requests

from tests import forked
from worker.local import valkey
from worker.local.children import Children, signal_group

ROOT = Path(__file__).resolve().parent.parent
#: Seconds for a process to come up on a busy two-core machine; torch alone takes several.
START_TIMEOUT_S = 60.0

Value = TypeVar("Value")


def eventually(
    predicate: Callable[[], Value],
    timeout: float = 10.0,
    *,
    interval: float = 0.02,
    message: str | Callable[[], str] = "",
) -> Value:
    """Return the first true value of `predicate`, polled until `timeout` seconds have passed."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            text = message() if callable(message) else message
            raise AssertionError(f"not so within {timeout} s: {text or predicate}")
        time.sleep(interval)


def free_port() -> int:
    """A free TCP port on the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def alive(pid: int) -> bool:
    """Whether the process runs; false for an ended process that waits to be reaped."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def clean_environment(**changes: str | None) -> dict[str, str]:
    """This process's environment without embedq's and Celery's variables, then `changes`.

    None removes a variable. The checkout is importable, output is unbuffered, and no library
    contacts a model hub.
    """
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EMBEDQ_", "CELERY_"))
    }
    env |= {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "HF_HUB_OFFLINE": "1",
        # The tests do not use the results of `embedq tune` on this machine.
        "EMBEDQ_TUNED": os.devnull,
    }
    for name, value in changes.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    return env


def run(
    program: Sequence[str], *, cwd: Path = ROOT, timeout: float = 60.0, **env: str | None
) -> subprocess.CompletedProcess[str]:
    """Run `program` to its end, with `env` as in `clean_environment`; its output as text."""
    return subprocess.run(
        program,
        cwd=cwd,
        env=clean_environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with `arguments`; options as of `run`."""
    return run([sys.executable, *arguments], **options)


@dataclass
class Process:
    """A running program, its log file, and its end."""

    program: Sequence[str]
    popen: subprocess.Popen[bytes]
    log_file: Path
    children: Children

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_for_log(self, text: str, timeout: float = START_TIMEOUT_S) -> None:
        """Wait until the log contains `text`; fail at once if the process ends without it."""

        def written() -> bool:
            ended = not self.running
            if text in self.log():
                return True
            assert not ended, f"ended with {self.popen.returncode} before {text!r}:\n{self.log()}"
            return False

        eventually(written, timeout, message=lambda: f"{text!r} in the log:\n{self.log()}")

    def signal(self, number: signal.Signals) -> None:
        """Signal the process itself, not its group."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL the whole group, like a crash, and reap it."""
        signal_group(self.popen, signal.SIGKILL)
        self.popen.wait()

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM, like an orchestrator; return the exit code. SIGKILL and fail past `timeout`."""
        if self.running:
            self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 20.0) -> int:
        """Wait for the process to end and return its exit code."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end within {timeout} s:\n{self.log()}") from None


@dataclass
class Processes:
    """Starts programs with a log file each; `close` kills all that still run.

    If pytest itself is killed, a guardian process ends them.
    """

    folder: Path
    children: Children = field(default_factory=Children)
    started: list[Process] = field(default_factory=list)

    def start(
        self,
        program: Sequence[str],
        *,
        name: str = "process",
        env: Mapping[str, str | None] | None = None,
        cwd: Path = ROOT,
    ) -> Process:
        def started(log: IO[bytes]) -> subprocess.Popen[bytes]:
            return self.children.start(
                program, env=clean_environment(**(env or {})), cwd=cwd, output=log
            )

        return self._keep(program, name, started)

    def python(self, *arguments: str, name: str = "python", **options: object) -> Process:
        """Start this interpreter with `arguments`."""
        return self.start([sys.executable, *arguments], name=name, **options)  # type: ignore[arg-type]

    def module(
        self,
        module: str,
        *arguments: str,
        name: str,
        env: Mapping[str, str | None],
        cwd: Path = ROOT,
    ) -> Process:
        """Run `python -m module`, in a fork of the run's server if that makes no difference."""
        complete = clean_environment(**env)
        program = [sys.executable, "-m", module, *arguments]
        if not forked.can_fork(complete, clean_environment()):
            return self.start(program, name=name, env=env, cwd=cwd)

        def fork(log: IO[bytes]) -> subprocess.Popen[bytes]:
            return forked.fork(
                module, arguments, env=complete, cwd=cwd, output=log, children=self.children
            )

        return self._keep(program, name, fork)

    def _keep(
        self,
        program: Sequence[str],
        name: str,
        start: Callable[[IO[bytes]], subprocess.Popen[bytes]],
    ) -> Process:
        log_file = self.folder / f"{len(self.started)}-{name}.log"
        with log_file.open("wb") as log:
            process = Process(program, start(log), log_file, self.children)
        self.started.append(process)
        return process

    def logs(self) -> str:
        """Every process's log, for the report of a failed test."""
        return "\n".join(f"--- {one.log_file.name}\n{one.log()}" for one in self.started)

    def close(self) -> None:
        for process in reversed(self.started):
            process.kill()
            self.children.forget(process.popen)
        self.children.close()


@dataclass
class ValkeyServer:
    """A real Valkey on a Unix socket and a loopback port; tests may kill and restart it."""

    processes: Processes
    folder: Path
    port: int
    persistent: bool = True
    options: Sequence[str] = ()
    process: Process | None = None

    @property
    def socket(self) -> Path:
        return valkey.socket_path(self.folder)

    @property
    def url(self) -> str:
        """Its address over TCP, valid as broker, as result backend and in redis-py."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        """Its address over the socket, in Celery's form."""
        return valkey.celery_url(self.socket)

    def client(self) -> redis.Redis:
        """A new connection pool; close it, or use it as a context manager."""
        return redis.Redis.from_url(self.url)

    def start(self) -> None:
        """Start it, with the same data after a kill, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        program = valkey.command(
            self.folder, self.socket, port=self.port, persistent=self.persistent
        )
        self.process = self.processes.start([*program, *self.options], name="valkey")
        eventually(self.answers, START_TIMEOUT_S, message=self.process.log)

    def answers(self) -> bool:
        """Whether it accepts commands now."""
        assert self.process is None or self.process.running, self.process.log()
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        """SIGKILL: the same as a crash of the server."""
        assert self.process is not None
        self.process.kill()

    def restart(self) -> None:
        self.kill()
        self.start()


def start_worker(
    processes: Processes,
    broker_url: str,
    *arguments: str,
    app: str = "worker",
    name: str | None = None,
    ready: str | None = " ready.",
    env: Mapping[str, str | None] | None = None,
    cwd: Path = ROOT,
) -> Process:
    """`celery -A APP worker` with its model loaded, consuming from `broker_url`.

    `ready` is a text of the log then; None returns at once, for a worker that must not start.
    `cwd` is the folder with the code.
    """
    node = name or f"worker{len(processes.started)}"
    process = processes.module(
        *("celery", "-A", app, "worker", "-n", f"{node}@localhost", "-l", "info"),
        *arguments,
        name=node,
        env={
            "CELERY_BROKER_URL": broker_url,
            "CELERY_RESULT_BACKEND": broker_url,
            "PYTHONPATH": str(cwd),
            **(env or {}),
        },
        cwd=cwd,
    )
    if ready is not None:
        process.wait_for_log(ready)
    return process


@dataclass
class Api:
    """The API under gunicorn with gevent, and its address."""

    process: Process
    url: str


def start_api(
    processes: Processes,
    broker_url: str,
    *arguments: str,
    env: Mapping[str, str | None] | None = None,
    cwd: Path = ROOT,
) -> Api:
    """`gunicorn -k gevent 'api:create_app()'` on a free port, answering /healthz.

    `cwd` is the folder with the code.
    """
    port = free_port()
    process = processes.python(
        *("-m", "gunicorn", "-k", "gevent", "-b", f"127.0.0.1:{port}", "--no-control-socket"),
        *arguments,
        "api:create_app()",
        name="api",
        env={
            "CELERY_BROKER_URL": broker_url,
            "CELERY_RESULT_BACKEND": broker_url,
            "PYTHONPATH": str(cwd),
            **(env or {}),
        },
        cwd=cwd,
    )
    api = Api(process, f"http://127.0.0.1:{port}")
    eventually(lambda: answers(api), START_TIMEOUT_S, message=process.log)
    return api


def answers(api: Api, path: str = "/healthz") -> bool:
    """Whether the API answers 200 now; fail at once if it has ended."""
    assert api.process.running, api.process.log()
    try:
        return requests.get(api.url + path, timeout=5).status_code == HTTPStatus.OK
    except (requests.ConnectionError, requests.Timeout):
        return False
