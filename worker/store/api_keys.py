"""API keys: their limits, their verification, and the file that holds them.

A key is `eq_ID_SECRET`. The file keeps the SHA-256 of the whole key. A secret of 256 random bits
cannot be guessed from it, so no slower hash is needed, unlike for a password.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.contract.errors import SettingsError

_FORM = re.compile(r"eq_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
#: Read and written by its owner alone.
_MODE = 0o600
#: The latest time that can be formatted as a date, in seconds since the epoch.
LATEST = 253_402_300_799.0

Limit = Annotated[int, Field(ge=1, le=2**53)]
Time = Annotated[float, Field(ge=0, le=LATEST)]


class KeyFileError(SettingsError):
    """The file of keys cannot be read or written; the message names the file and the fault."""


class ApiKey(BaseModel):
    """One key, without its secret. Times are seconds since the epoch; None: no limit."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: str = Field(default="", max_length=200)
    created_at: Time
    expires_at: Time | None = None
    revoked_at: Time | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_queued_tokens: Limit | None = None
    #: MiB of waiting messages; None: a share of the queue's limit.
    max_queued_mb: Limit | None = None

    def state(self, now: float) -> Literal["valid", "expired", "revoked"]:
        """State of the key at a time, in seconds since the epoch."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and now >= self.expires_at:
            return "expired"
        return "valid"


class NewKey(NamedTuple):
    """A new key; `secret` is the whole value that a client sends, and is not stored."""

    key: ApiKey
    secret: str


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    version: Literal[1] = 1
    keys: list[ApiKey]


def new_key(**fields: object) -> NewKey:
    """Make a key with a random id and secret; `fields` are the other fields of ApiKey."""
    key_id = secrets.token_hex(6)
    secret = f"eq_{key_id}_{secrets.token_urlsafe(32)}"
    known = {"id": key_id, "sha256": _digest(secret), "created_at": time.time()}
    return NewKey(ApiKey.model_validate(known | fields), secret)


class Keyring:
    """The keys of a file at one moment."""

    def __init__(self, keys: list[ApiKey]) -> None:
        self._keys = {key.id: key for key in keys}

    def __iter__(self) -> Iterator[ApiKey]:
        return iter(self._keys.values())

    def find(self, secret: str, now: float) -> ApiKey | None:
        """Return the key of a sent secret if it is valid, else None. Compares in constant time."""
        match = _FORM.fullmatch(secret)
        key = self._keys.get(match[1]) if match else None
        if key is None or not hmac.compare_digest(key.sha256, _digest(secret)):
            return None
        return key if key.state(now) == "valid" else None


class KeyFile:
    """The file of keys at a path: JSON, replaced in one step, written by one process at a time."""

    def __init__(self, path: Path) -> None:
        # The target of a link: replacing the link itself would leave its target unchanged.
        self.path = path.resolve()

    def read(self) -> Keyring:
        """The keys. Raises KeyFileError."""
        try:
            return Keyring(self._parse(self.path.read_bytes()))
        except OSError as error:
            raise KeyFileError(f"{self._name} cannot be read: {error.strerror}") from error

    def add(self, key: ApiKey) -> None:
        """Add a key, in a new file if there is none. Raises KeyFileError."""
        with self._locked() as keys:
            keys.append(key)

    def revoke(self, name: str) -> ApiKey:
        """Revoke the key of an id or a name that one key alone has. Raises KeyFileError."""
        with self._locked() as keys:
            found = [key for key in keys if name in (key.id, key.name) and key.revoked_at is None]
            if len(found) != 1:
                there = f"{len(found)} keys are" if found else "no key is"
                raise KeyFileError(f"{there} called {name!r} in {self.path}; give an id of `list`")
            revoked = found[0].model_copy(update={"revoked_at": time.time()})
            keys[keys.index(found[0])] = revoked
        return revoked

    @contextmanager
    def _locked(self) -> Iterator[list[ApiKey]]:
        """The keys to be changed, which are written back at the end."""
        try:
            with self.path.with_name(self.path.name + ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                keys = self._parse(self.path.read_bytes()) if self.path.exists() else []
                yield keys
                self._write(_Document(keys=keys))
        except OSError as error:
            raise KeyFileError(f"{self._name} cannot be written: {error.strerror}") from error

    def _write(self, document: _Document) -> None:
        new = self.path.with_name(self.path.name + ".new")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "w") as file:  # noqa: PTH123
            if self.path.exists():
                # Keep the file's owner, which may be the API's user: root may revoke keys, too.
                stat = self.path.stat()
                with suppress(PermissionError):
                    os.fchown(file.fileno(), stat.st_uid, stat.st_gid)
            file.write(document.model_dump_json(indent=1, exclude_defaults=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)

    def _parse(self, raw: bytes) -> list[ApiKey]:
        try:
            keys = _Document.model_validate_json(raw).keys
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise KeyFileError(f"{self._name}: {where}: {first['msg']}") from None
        ids = [key.id for key in keys]
        if len(set(ids)) < len(ids):
            raise KeyFileError(f"{self._name}: an id is there twice")
        return keys

    @property
    def _name(self) -> str:
        return f"EMBEDQ_API_KEYS_FILE={str(self.path)!r}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
