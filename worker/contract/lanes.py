"""Lanes: the order in which jobs are taken, and the lists of a queue in which they wait.

A lane is a range of kombu's priority steps; the lowest step is served first. The list of step 0 has
just the queue's name: stock producers put messages without a priority there. Interactive jobs are
served earlier, so their step is negative, which Celery's producers cannot set.
"""

from __future__ import annotations

from enum import IntEnum

#: As kombu's own, and one below for the interactive lane.
PRIORITY_STEPS = (-1, 0, 3, 6, 9)
#: Between a queue's name and a step, as kombu's Redis transport has it.
_SEPARATOR = "\x06\x16"


class Lane(IntEnum):
    """Jobs of waiting callers, ordinary jobs, and bulk jobs without a waiting caller."""

    INTERACTIVE = 0
    NORMAL = 1
    BULK = 2

    @property
    def step(self) -> int:
        """The priority step of its jobs."""
        return (-1, 0, 9)[self]


def lane_of(step: int) -> Lane:
    """The lane of a priority step."""
    if step < 0:
        return Lane.INTERACTIVE
    return Lane.NORMAL if step < 6 else Lane.BULK


def list_of(queue: str, step: int) -> str:
    """The list of a queue's messages of a priority step."""
    return f"{queue}{_SEPARATOR}{step}" if step else queue


def lists_of(queue: str) -> list[str]:
    """Every list of a queue, in the order in which they are served."""
    return [list_of(queue, step) for step in PRIORITY_STEPS]
