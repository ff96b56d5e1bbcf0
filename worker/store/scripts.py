"""Lua scripts: the atomic steps of a job's life.

Each is a file in the folder `lua`. Its header states its keys, arguments and answer, the effect of
a repeat and the bound of its cost. redis-py repeats a call if the connection is lost before the
answer, so a repeat must change nothing. If a call covers many jobs, the script builds the keys with
their ids. Scripts therefore need one server (or Sentinel), not Redis Cluster, as kombu does.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

_FOLDER = files("worker.store") / "lua"


def _load(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text()


_COMMON = _load("common")

SUBMIT: Final = _COMMON + _load("submit")
WITHDRAW: Final = _COMMON + _load("withdraw")
PROGRESS: Final = _COMMON + _load("progress")
COMPLETE: Final = _COMMON + _load("complete")
NOTE: Final = _COMMON + _load("note")
RELEASE: Final = _COMMON + _load("release")
LEAVE: Final = _COMMON + _load("leave")
LEASED: Final = _COMMON + _load("leased")
SWEEP: Final = _COMMON + _load("sweep")
REQUEUE: Final = _COMMON + _load("requeue")
TAKE: Final = _COMMON + _load("take")
HEARTBEAT: Final = _COMMON + _load("heartbeat")
FILE_HOLD: Final = _COMMON + _load("file_hold")
FILE_RELEASE: Final = _COMMON + _load("file_release")
BATCH_CLAIM: Final = _COMMON + _load("batch_claim")
BATCH_UPDATE: Final = _COMMON + _load("batch_update")
ATTEMPT: Final = _COMMON + _load("attempt")
CACHE: Final = _COMMON + _load("cache")
