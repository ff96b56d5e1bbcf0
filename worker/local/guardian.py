"""The process that outlives `embedq up` just long enough to end its children.

A program of its own (`python guardian.py LIFELINE ALIVE GRACE`), standard library only, so that
it starts in milliseconds and stays small. Two pipes are its only input:

* LIFELINE, read here. Children announce their process group before they become their real
  program (`+PID`); the parent removes reaped children (`-PID`). End of file means that the
  parent has ended in any way: the kernel closes the pipe even after SIGKILL.
* ALIVE, read here, never written. Every child and its descendants have the other end open, so
  end of file means that all have ended. This avoids polling for processes.

After the parent's end the groups get SIGTERM, and SIGKILL if they still exist GRACE seconds later.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import suppress


def main(lifeline: int, alive: int, grace_s: float) -> None:
    """Wait for the parent's end, then end its children. Single-threaded; owns the set of groups."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups = _follow(lifeline)
    if not groups:
        return
    _signal(groups, signal.SIGTERM)
    ended, _, _ = select.select([alive], [], [], grace_s)
    if not ended:
        _signal(groups, signal.SIGKILL)


def _follow(lifeline: int) -> set[int]:
    """Read announcements until the parent is gone; the process groups that are left."""
    groups: set[int] = set()
    with os.fdopen(lifeline, "rb") as lines:
        for line in lines:
            group = int(line[1:])
            if line.startswith(b"+"):
                groups.add(group)
            else:
                groups.discard(group)
    return groups


def _signal(groups: set[int], number: signal.Signals) -> None:
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, number)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
