"""Shift a host's clock by CLOCK_SHIFT_SECONDS, for a program with this folder on its path.

The clocks that Python code reads are shifted; the times of files and other processes are not.
"""

from __future__ import annotations

import datetime as dt
import os
import time
from typing import Any

_SHIFT = float(os.environ.get("CLOCK_SHIFT_SECONDS", "0"))
_SHIFT_NS = int(_SHIFT * 10**9)
_time, _time_ns, _datetime = time.time, time.time_ns, dt.datetime


class _Passing(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _datetime)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, _datetime)


class _Shifted(_datetime, metaclass=_Passing):
    def __new__(cls, *args: Any, **kwargs: Any) -> dt.datetime:  # type: ignore[misc]
        # Never of this type: C code does not handle it.
        return _datetime(*args, **kwargs)

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
        return _datetime.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> dt.datetime:
        return _datetime.fromtimestamp(time.time(), dt.UTC).replace(tzinfo=None)

    @classmethod
    def today(cls) -> dt.datetime:
        return cls.now()


if _SHIFT:
    time.time = lambda: _time() + _SHIFT
    time.time_ns = lambda: _time_ns() + _SHIFT_NS
    dt.datetime = _Shifted  # type: ignore[misc]
