"""Parsers of settings. Each raises ValueError with the allowed values, as the end of a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from worker.contract.backends import backends, number_formats
from worker.contract.models import ModelSpec

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_SIZE_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}
#: Seconds, tokens and threads past which a number is a slip; Redis takes no longer times either.
_MOST = 2**31 - 1


def one_of(*allowed: str) -> Callable[[str], str]:
    """One of a few words."""

    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"is not one of {', '.join(allowed)}")
        return value

    return parse


def backend(value: str) -> str:
    """`auto` or a registered backend."""
    return one_of("auto", *backends())(value)


def dtype(value: str) -> str:
    """`auto` or a number format of a registered backend."""
    return one_of("auto", *number_formats())(value)


def flag(value: str) -> bool:
    """`true`, `1`, `false` or `0`."""
    if value.lower() not in ("true", "1", "false", "0"):
        raise ValueError("is not one of true, 1, false, 0")
    return value.lower() in ("true", "1")


def whole(*, least: int, unit: int = 1) -> Callable[[str], int]:
    """A number of at least `least`, times `unit`."""

    def parse(value: str) -> int:
        number = int(value) if re.fullmatch(r"[+-]?[0-9]{1,15}", value) else None
        if number is None or not least <= number <= _MOST:
            raise ValueError(f"is not a whole number from {least:,} to {_MOST:,}")
        return number * unit

    return parse


positive = whole(least=1)
#: A number of MiB, in bytes.
mebibytes = whole(least=1, unit=2**20)


def size(value: str) -> int:
    """Bytes, with an optional unit: `8388608`, `8 MiB`."""
    match = re.fullmatch(r"(\d+)\s*([a-z]*)", value.lower())
    unit = _SIZE_UNITS.get(match[2]) if match else None
    if match is None or unit is None or int(match[1]) == 0:
        raise ValueError("is not a number of bytes such as 8388608 or 8 MiB")
    return int(match[1]) * unit


def cosine(value: str) -> float:
    """A number from -1 to 1."""
    number = float(value) if re.fullmatch(r"-?[01](\.[0-9]{1,9})?", value) else 2.0
    if not -1.0 <= number <= 1.0:
        raise ValueError("is not a cosine from -1 to 1 such as 0.99")
    return number


def share(value: str) -> float:
    """A number above 0 and up to 1."""
    number = float(value) if re.fullmatch(r"[01](\.[0-9]{1,9})?", value) else 0.0
    if not 0.0 < number <= 1.0:
        raise ValueError("is not a share above 0 and up to 1 such as 0.5")
    return number


def models(value: str) -> tuple[ModelSpec, ...]:
    """`path`, `hub/id` or `name=path`, several separated by commas."""
    specs = []
    for part in (part.strip() for part in value.split(",")):
        name, separator, source = part.rpartition("=")
        if not source or (separator and not name):
            raise ValueError("is not a path, a Hub id or a list of name=path")
        specs.append(ModelSpec(name or _served_name(source), source))
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ValueError(f"serves a name twice: {', '.join(names)}")
    return tuple(specs)


def device(value: str) -> str:
    """A device of torch."""
    if not _DEVICE.fullmatch(value):
        raise ValueError("is not one of auto, cpu, cuda, cuda:N, mps")
    return value


def queue(value: str) -> str:
    """A name that needs no escaping in a key."""
    if not re.fullmatch(r"[\w.-]{1,128}", value):
        raise ValueError("is not a queue name of letters, digits, '.', '_' and '-'")
    return value


def server(value: str) -> str:
    """A URL, or a list of them, with a password that cannot be read as a host or port."""
    for part in value.split(";"):
        try:
            parts = urlsplit(part)
            # An invalid port raises ValueError, which quotes a part that may be a secret.
            misread = parts.port is not None and "@" in parts.path
        except ValueError:
            misread = True
        if misread or "@" in parts.fragment:
            raise ValueError(
                "is not a URL such as redis://:password@host:6379/0; in a password, "
                "'/', '?', '#', '@', ';' and '[' are written as %2F, %3F, %23, %40, %3B and %5B"
            )
    return value


def path(value: str) -> Path:
    """A path, in which `~` is the user's folder."""
    return Path(value).expanduser()


def place(value: str) -> str:
    """A folder that means the same in every process, or a URL."""
    if "://" in value:
        return value
    if not path(value).is_absolute():
        raise ValueError("is neither an absolute path nor a URL such as s3://bucket/embedq")
    return str(path(value))


def _served_name(source: str) -> str:
    """A path is served under its last part, a Hub id as it is."""
    path = Path(source).expanduser()
    return path.resolve().name if path.is_absolute() or path.exists() else source
