"""A process with the worker's libraries loaded, which forks: a worker starts without their import.

`python fork_server.py NAME` listens on an abstract Unix socket. A caller sends the program to run
and its open files, and receives the process id, then the exit code. The child has its own session,
the caller's environment, and no module of this repository: it runs the program as `python -m`
does. The server ends with its standard input. Linux only; single-threaded.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

#: Third-party modules that a worker imports; loaded for the first caller.
LIBRARIES = (
    "sentence_transformers",
    "sentence_transformers.sentence_transformer.modules",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.worker.consumer",
    "celery.worker.worker",
    "flower.command",
    "kombu.transport.redis",
    "orjson",
    "prometheus_client",
    "psutil",
    "pydantic.fields",
    "pydantic.main",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
)
#: Bytes of a call: an environment and a command line.
MOST_BYTES = 1 << 18


@dataclass(frozen=True)
class Call:
    """A module to run, and the caller's files: its output and the guardian's two pipes."""

    module: str
    arguments: list[str]
    env: dict[str, str]
    cwd: str
    output: int
    lifeline: int
    alive: int

    @property
    def files(self) -> tuple[int, int, int]:
        return self.output, self.lifeline, self.alive

    def run(self) -> None:
        """Become the program. Does not return before it ends."""
        os.setsid()
        for stream in (1, 2):
            os.dup2(self.output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.write(self.lifeline, b"+%d\n" % os.getpid())
        os.closerange(3, self.alive)
        os.closerange(self.alive + 1, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ.update(self.env)
        os.chdir(self.cwd)
        folders = self.env.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [self.cwd, *(folder for folder in folders if folder)]
        sys.argv[:] = [self.module, *self.arguments]
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)


def serve(name: str) -> Call | None:
    """Answer callers. Returns in a child with its call, or None when standard input ends."""
    selector = selectors.DefaultSelector()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0{name}")
    listener.listen()
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    print("serving", flush=True)  # noqa: T201
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                caller, _ = listener.accept()
                if (call := _fork(caller, selector)) is not None:
                    return call
            elif key.data is not None:
                selector.unregister(key.fileobj)
                _report(key.fd, *key.data)
            else:
                return None


def _fork(caller: socket.socket, selector: selectors.BaseSelector) -> Call | None:
    """Return the call in the child; in the server, return None and watch for the child's end."""
    message, files, _, _ = socket.recv_fds(caller, MOST_BYTES, 3)
    if not message:
        caller.close()
        return None
    call = Call(**json.loads(message), output=files[0], lifeline=files[1], alive=files[2])
    _load()
    pid = os.fork()
    if not pid:
        return call
    for file in call.files:
        os.close(file)
    with suppress(OSError):
        caller.send(json.dumps(pid).encode())
    # Readable once the child has ended.
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, caller))
    return None


def _report(ended: int, pid: int, caller: socket.socket) -> None:
    """Reap a child and send its exit code as `subprocess` gives it."""
    _, status = os.waitpid(pid, 0)
    os.close(ended)
    with suppress(OSError):
        caller.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
    caller.close()


def _load() -> None:
    """Import the libraries, once."""
    if LIBRARIES[0] in sys.modules:
        return
    for name in LIBRARIES:
        importlib.import_module(name)
    # A garbage collection in a child would copy every page with an object of the libraries.
    gc.collect()
    gc.freeze()


def main() -> Any:
    # Modules must not be imported from this file's folder.
    del sys.path[0]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    call = serve(sys.argv[1])
    if call is not None:
        call.run()


if __name__ == "__main__":
    main()
