"""API keys: the key of a request, and the owner of the jobs that it submits and lists."""

from __future__ import annotations

import logging
import threading
import time

from flask import Request

from api.errors import Problem
from api.requests import current_g
from worker.store.api_keys import ApiKey, KeyFile, KeyFileError

logger = logging.getLogger(__name__)

#: Seconds between two checks of the file of keys.
_FRESH = 1.0


#: Identifies one state of a file; empty if the file does not exist.
Stamp = tuple[int, ...]


class ApiKeys:
    """The keys of a file, read again when it changes; one an application.

    Safe to share between threads: one at a time checks the file, the others use the keys read
    before. If the file becomes unreadable, the last valid keys remain in use.
    """

    def __init__(self, file: KeyFile) -> None:
        """Raises KeyFileError."""
        self._file = file
        self._stamp = self._look()
        self._keys = file.read()
        #: The state of an unreadable file, so that it is logged once.
        self._unread: Stamp | None = None
        self._looking = threading.Lock()
        self._stale_at = time.monotonic() + _FRESH

    def find(self, secret: str) -> ApiKey | None:
        """Return the valid key with this secret, or None."""
        if time.monotonic() >= self._stale_at and self._looking.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._looking.release()
        return self._keys.find(secret, time.time())

    def _refresh(self) -> None:
        self._stale_at = time.monotonic() + _FRESH
        stamp = self._look()
        if stamp == self._stamp:
            return
        try:
            self._keys = self._file.read()
        except KeyFileError as error:
            if stamp != self._unread:
                logger.error("The keys stay as they were: %s", error.message)  # noqa: TRY400
            self._unread = stamp
        else:
            # Set only on success: an unreadable file is read again, changed or not.
            self._stamp, self._unread = stamp, None

    def _look(self) -> Stamp:
        try:
            stat = self._file.path.stat()
        except OSError:
            return ()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def authenticate(keys: ApiKeys, request: Request) -> ApiKey:
    """Return the key of a request. Raises Problem with `unauthorized`."""
    sent = _sent(request)
    found = keys.find(sent)
    if found is None:
        raise Problem(
            "unauthorized",
            "the API key is not known, or is valid no more"
            if sent
            else "an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY",
            headers={"WWW-Authenticate": 'Bearer realm="embedq"'},
        )
    return found


def key() -> ApiKey | None:
    """The key of the current request; None if the route or the application needs no key."""
    found: ApiKey | None = current_g().get("key")
    return found


def owner() -> str:
    """The owner of objects that the current request submits or lists: its key's id, or "".

    Jobs submitted through Celery have the owner "", too.
    """
    found = key()
    return "" if found is None else found.id


def _sent(request: Request) -> str:
    """Return the key in the headers of a request, or ''."""
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return request.headers.get("X-API-Key", "").strip()
