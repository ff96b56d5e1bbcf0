"""The report of a run: the outcomes of accepted jobs, the answers to callers, the leftovers."""

from __future__ import annotations

from typing import Any

from bench.soak.access import refusals
from bench.soak.audit import (
    Expected,
    leftovers,
    outcomes,
    unasked,
    wait_for_empty,
    wait_for_outcomes,
)
from bench.soak.load import Accepted
from bench.soak.stage import QUEUE, Stage

#: Seconds for all jobs to end after the load.
_PATIENCE = 120


def settle(stage: Stage, accepted: Accepted, expected: Expected) -> dict[str, Any]:
    """Wait for all accepted jobs to end and count them; `violations` lists the failed checks."""
    with stage.client() as client:
        missing = wait_for_outcomes(client, list(accepted.jobs), _PATIENCE)
        counts = outcomes(client, accepted.jobs, expected) + accepted.answered
        wait_for_empty(client, QUEUE)
        left = leftovers(client, QUEUE)
        twice = max(unasked(client, QUEUE, accepted.ids) - accepted.unknown, 0)
        refused = refusals(client)
    right = counts.pop("right", 0)
    report = {
        "accepted": accepted.total,
        "right": right,
        "lost": len(missing),
        **counts,
        "refused": accepted.refused,
        "answers": dict(accepted.answers.most_common()),
        "improper answers": accepted.improper[:5],
        "sent again and replayed": accepted.replayed,
        "keys that stood for two jobs": accepted.twice + twice,
        "unknown to the caller": accepted.unknown,
        "left": left,
        "commands that the server refused": refused,
    }
    found = {
        "nothing was accepted": not accepted.total,
        "jobs are lost": report["lost"],
        "jobs ended wrong": right + len(missing) != accepted.total,
        "callers saw other answers than 200, 202 and a proper 503": report["improper answers"],
        "a key stood for two jobs": report["keys that stood for two jobs"],
        "the server refused commands": refused,
        "messages are left": left["queued"] or left["leased"] or left["dead letters"],
    }
    return report | {"violations": [name for name, is_so in found.items() if is_so]}
