"""Child processes that end with their parent, even if the parent is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

HERE = Path(__file__).parent

#: Seconds that children have for a clean end after their parent was killed.
ORPHAN_GRACE_S = 5.0


class Children:
    """Starts processes, each leading its own session and group, under one guardian.

    Any thread may start and end children: the pipes are written in single writes shorter than
    PIPE_BUF, which the kernel keeps whole. `close` lets the guardian end the remaining processes.
    """

    def __init__(self, grace_s: float = ORPHAN_GRACE_S) -> None:
        lifeline_read, self._lifeline = os.pipe()
        alive_read, self._alive = os.pipe()
        script = str(HERE / "guardian.py")
        self.guardian = subprocess.Popen(
            [*_bare_python(), script, str(lifeline_read), str(alive_read), str(grace_s)],
            stdin=subprocess.DEVNULL,
            pass_fds=(lifeline_read, alive_read),
            start_new_session=True,
        )
        os.close(lifeline_read)
        os.close(alive_read)

    def start(
        self,
        program: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        output: IO[bytes] | int | None = None,
        keep_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start `program` with an empty standard input.

        `output` receives both its streams (None: those of this process); `keep_fds` stay open in
        it. The process id is also its group's: signal it with `signal_group`.
        """
        return subprocess.Popen(
            [*_bare_python(), HERE / "launch.py", str(self._lifeline), *program],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output if output is None else subprocess.STDOUT,
            env=env,
            cwd=cwd,
            pass_fds=(self._lifeline, self._alive, *keep_fds),
            start_new_session=True,
        )

    def forget(self, child: subprocess.Popen[bytes]) -> None:
        """Kill the rest of a reaped child's group and remove it from the guardian's list."""
        signal_group(child, signal.SIGKILL)
        with suppress(BrokenPipeError):
            os.write(self._lifeline, b"-%d\n" % child.pid)

    def close(self) -> None:
        """Close the lifeline and wait until the guardian has ended every child."""
        for pipe in (self._lifeline, self._alive):
            os.close(pipe)
        self.guardian.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal every process of the child's group, if it still exists."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _bare_python() -> list[str]:
    """This interpreter without site-packages and user settings: it starts in milliseconds."""
    return [sys.executable, "-I", "-S"]
