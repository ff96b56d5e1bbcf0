"""The id of a request, its caller's own or a new one: in its answer and in the log."""

from __future__ import annotations

import logging
import re
import secrets

HEADER = "X-Request-Id"

#: Accepted ids of callers: the usual forms, without characters that a log would have to escape.
_SANE = re.compile(r"[\w.:+/=@-]{1,128}", re.ASCII)


def request_id(given: str | None) -> str:
    """The caller's own id of a request if it is accepted, else a new one in OpenAI's form."""
    return given if given and _SANE.fullmatch(given) else f"req_{secrets.token_hex(16)}"


def add_request_id(record: logging.LogRecord) -> bool:
    """A log filter that adds the id of the current request to a record; it keeps all records."""
    # Imported here: gunicorn reads this before gevent patches the modules that Flask imports.
    from flask import g, has_request_context

    if has_request_context() and "request_id" in g:
        record.request_id = g.request_id
    return True
