"""Lua scripts and their calls, as redis-py and our own connections send them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the digest that Redis knows it by."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        # Redis names scripts by SHA-1, without a security purpose.
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


@dataclass(frozen=True, slots=True)
class Command:
    """One call of a script."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[str | int | float, ...]

    @property
    def by_digest(self) -> tuple[str | int | float, ...]:
        return "EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args

    @property
    def in_full(self) -> tuple[str | int | float, ...]:
        """For a server that does not know the script yet; it then caches the script."""
        return "EVAL", self.script.text, len(self.keys), *self.keys, *self.args
