"""The start of a child: it announces its group to the guardian, then becomes its real program.

`python launch.py LIFELINE PROGRAM ARGUMENT…`, standard library only. The child announces itself,
so that a parent killed right after the fork leaves no unknown child: the guardian reads no end of
file while this process still has the pipe open.
"""

from __future__ import annotations

import os
import sys


def main(lifeline: int, program: list[str]) -> None:
    """Announce this process, which leads its own group, and exec `program`."""
    os.write(lifeline, b"+%d\n" % os.getpid())
    os.close(lifeline)
    os.execvp(program[0], program)  # noqa: S606 — no shell: this is the process itself


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
