"""A whole embedq, from the first process to the last, for `embedq up`."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

import redis

from worker.contract.settings import Settings
from worker.local import demo, deployment, folder, gpus, valkey
from worker.local.children import Children
from worker.local.deployment import Options
from worker.local.supervisor import Stopped, Supervisor
from worker.store.api_keys import KeyFile

#: The folder that holds embedq's own packages.
PACKAGES = Path(__file__).resolve().parents[2]
#: Seconds between two lines that report an unfinished start.
STILL_WAITING_S = 10.0
#: Seconds that one readiness check may take.
PROBE_S = 2.0

Say = Callable[[str], None]


def up(options: Options, *, with_demo: bool, with_parent: bool, say: Say, show: Say) -> None:
    """Start Valkey, workers and the API, keep them running, and return once all have ended.

    With 0 `workers` there is one for each GPU, at least one. `say` gets progress; `show` gets the
    requested output: the sample job and the address. If CELERY_BROKER_URL is set, that server is
    used and no Valkey is started. `with_parent` also stops all programs when the parent process
    ends. Raises an `EmbedqError` if it cannot start.
    """
    deployment.check_current_folder(Path.cwd(), PACKAGES)
    # Jobs, results and files that the processes write are for their owner alone.
    os.umask(0o077)
    found = gpus.count(options.device or os.environ.get("EMBEDQ_DEVICE") or "auto")
    options = replace(options, gpus=found, workers=options.workers or max(found, 1))
    data = None if os.environ.get("CELERY_BROKER_URL", "").strip() else _absolute(options.data_dir)
    with ExitStack() as stack:
        lock = stack.enter_context(folder.lock(data)) if data else None
        listener = stack.enter_context(deployment.listen(options.host, options.port))
        options = replace(options, port=listener.getsockname()[1])
        socket_file = valkey.socket_path(data) if data else None
        env = deployment.environment(options, os.environ, socket_file)
        settings = Settings.from_env(env)
        if settings.api_keys_file is not None:
            # The API would report the same error only in its log.
            KeyFile(settings.api_keys_file).read()
        deployment.check_open(
            options.host,
            keys=settings.api_keys_file is not None,
            without_keys=options.without_keys,
        )

        counts = Path(stack.enter_context(TemporaryDirectory(prefix="embedq-metrics-")))
        supervisor = Supervisor(stack.enter_context(Children()), say)
        supervisor.catch_signals()
        if with_parent:
            watch_parent(supervisor)
        stack.callback(supervisor.stop)
        try:
            if data and socket_file and lock:
                supervisor.start(deployment.server(data, socket_file, lock.fileno()))
                supervisor.wait_ready(lambda: _valkey_answers(socket_file))
                say(f"Valkey is up, its data in {data}")
            for program in deployment.workers(options, settings, env):
                supervisor.start(program)
            supervisor.start(deployment.api(listener, env, counts))
            names = ", ".join(model.name for model in settings.models)
            say(f"Starting the API and {options.workers} worker(s), which load {names} …")
            supervisor.wait_ready(lambda: _api_ready(options), _patience(say))
            if with_demo and settings.api_keys_file and not os.environ.get("EMBEDQ_API_KEY"):
                say("No sample job: the API asks for a key, and EMBEDQ_API_KEY holds none")
            elif with_demo:
                _run_demo(supervisor, options, show)
            _show_address(options, env["CELERY_BROKER_URL"] if socket_file else None, show)
            reason = supervisor.run()
        except Stopped as stop:
            reason = str(stop)
        say(reason)


def watch_parent(supervisor: Supervisor) -> None:
    """Ask for the end when the parent process ends, if the system can report that (Linux).

    A thread of its own waits for that, and ends with this process.
    """
    parent = os.getppid()
    if not hasattr(os, "pidfd_open"):
        return
    try:
        descriptor = os.pidfd_open(parent)
    except ProcessLookupError:
        supervisor.ask_stop("The parent process has ended")
        return

    def wait() -> None:
        select.select([descriptor], [], [])
        supervisor.ask_stop("The parent process has ended")

    threading.Thread(target=wait, name="watch parent", daemon=True).start()


def _absolute(path: Path) -> Path:
    return path.expanduser().resolve()


def _valkey_answers(socket_file: Path) -> bool:
    """Whether it takes commands; False also while it reads its data in."""
    try:
        with redis.Redis(unix_socket_path=str(socket_file), socket_timeout=PROBE_S) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _api_ready(options: Options) -> bool:
    """Whether the API and a worker with a loaded model answer."""
    connection = HTTPConnection(*deployment.reachable(options), timeout=PROBE_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _patience(say: Say) -> Callable[[float], None]:
    """Says every STILL_WAITING_S that it is still starting."""
    due = STILL_WAITING_S

    def waiting(seconds: float) -> None:
        nonlocal due
        if seconds >= due:
            say(f"Still starting after {due:.0f} s")
            due += STILL_WAITING_S

    return waiting


def _run_demo(supervisor: Supervisor, options: Options, show: Say) -> None:
    """Run the sample job on a thread of its own, so that Ctrl-C is heard meanwhile."""
    # Imported here: it imports NumPy and Celery, which `embedq up` does not use otherwise.
    from worker.offline.client import Remote

    remote = Remote(_address(options), api_key=os.environ.get("EMBEDQ_API_KEY"))
    with ThreadPoolExecutor(1, thread_name_prefix="demo") as executor, closing(remote):
        job = executor.submit(demo.run, remote, show)
        try:
            supervisor.wait_ready(job.done)
        except Stopped:
            # Ending the API also ends the request that the thread waits for.
            supervisor.stop()
            raise
        job.result()


def _address(options: Options) -> str:
    host, port = deployment.reachable(options)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _show_address(options: Options, own_broker: str | None, show: Say) -> None:
    """`own_broker`: the address of the Valkey that runs here; another one its user knows."""
    url = _address(options)
    show("")
    show(f"embedq serves on {url} until Ctrl-C. Try it:")
    show("")
    show(
        f"  curl -s '{url}/jobs?wait=10' -H 'Content-Type: application/json' "
        """-d '{"input": ["a text", "another one"]}'"""
    )
    show("")
    if own_broker is not None:
        show("Celery programs reach it with:")
        show("")
        show(f"  export CELERY_BROKER_URL='{own_broker}'")
        show("")
