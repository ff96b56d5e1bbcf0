"""Removal of secrets from URLs, and from every log record that quotes one.

Errors of fsspec, kombu and redis-py may quote their URL, or a part of it. So a setting's URL is
protected when it is read: from then on no log record of the process contains it. Answers to
callers never quote foreign errors: replacing secrets there would let callers test guesses, by
sending a guess in a request and reading the error that quotes it.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final
from urllib.parse import quote, unquote

SHOWN: Final = "***"

#: Servers of a Sentinel list.
_PARTS = re.compile(r";(?=[\w+.-]+://)")
#: Everything up to the last @: a password may contain any character, encoded or not.
_USER_INFO = re.compile(r"^([\w+.-]+://|[\w+.-]+:(?=/))?(.*)@", re.DOTALL)
_PARAMETER = re.compile(r"(?<=[?&#;])([^=&#;]+)=([^&#]*)")
_SECRET_NAME = re.compile(r"pass|pwd|secret|token|key|sig|cred|auth|user", re.IGNORECASE)
#: Shorter secrets (in characters) are replaced only together with the rest of their URL.
_SHORTEST = 4


def redact(url: str) -> str:
    """A URL, or a list of Sentinels, without user info and values of secret parameters."""
    return ";".join(_redact_one(part) for part in _PARTS.split(url))


def protect(url: str) -> None:
    """Remove a URL and its secrets from all later log records of this process."""
    if redact(url) == url:
        return
    _replacements[url] = redact(url)
    for part in _PARTS.split(url):
        found = _USER_INFO.match(part)
        info = found[2] if found else ""
        user, separator, password = info.partition(":")
        if info:
            _replacements[f"{info}@"] = f"{SHOWN}@"
        named = [match[2] for match in _PARAMETER.finditer(part) if _is_secret(match[1])]
        # A name alone is an ordinary word, as `default`.
        for secret in (user and separator and info, password, *named):
            for form in {secret, unquote(secret), quote(unquote(secret), safe="")}:
                if len(form) >= _SHORTEST:
                    _replacements[form] = SHOWN
    ordered = sorted(_replacements, key=len, reverse=True)
    _Records.pattern = re.compile("|".join(map(re.escape, ordered)))
    _Records.install()


def conceal(text: str) -> str:
    """A text of the log without the secrets of `protect`."""
    pattern = _Records.pattern
    return text if pattern is None else pattern.sub(lambda found: _replacements[found[0]], text)


_replacements: dict[str, str] = {}


class _Records:
    """The process's factory of log records; it belongs to logging, so there is one."""

    pattern: re.Pattern[str] | None = None
    installed = False

    @classmethod
    def install(cls) -> None:
        if cls.installed:
            return
        cls.installed = True
        make = logging.getLogRecordFactory()

        def make_redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = make(*args, **kwargs)
            try:
                _redact_record(record)
            except Exception:  # noqa: BLE001 — arguments that do not fit: the handler reports them
                return record
            return record

        logging.setLogRecordFactory(make_redacted)


def _redact_record(record: logging.LogRecord) -> None:
    message = record.getMessage()
    concealed = conceal(message)
    if concealed != message:
        record.msg, record.args = concealed, None
    if record.exc_info and record.exc_info[0] is not None:
        # Formatters use this text if there is one.
        text = logging.Formatter().formatException(record.exc_info)
        if (concealed := conceal(text)) != text:
            record.exc_text = concealed


def _redact_one(url: str) -> str:
    url = _USER_INFO.sub(rf"\g<1>{SHOWN}@", url, count=1)
    return _PARAMETER.sub(
        lambda found: f"{found[1]}={SHOWN}" if _is_secret(found[1]) else found[0], url
    )


def _is_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(unquote(name)))
