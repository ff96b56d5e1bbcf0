"""kombu's message, its JSON decoded at the speed of Python's own decoder."""

from __future__ import annotations

import bz2
import json
import logging
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import orjson
from kombu.exceptions import DecodeError
from kombu.transport import virtual
from kombu.utils.json import loads

from worker.contract.jobs import TASK_NAME

logger = logging.getLogger(__name__)

#: Bytes that a compressed body may have when it is decompressed.
LARGEST_BODY = 64 * 1024 * 1024
#: By kombu's names; it also knows formats of libraries that may be installed.
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("application/x-gzip", "gzip", "zlib"), zlib.decompressobj),
    **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), bz2.BZ2Decompressor),
    **dict.fromkeys(("application/x-lzma", "lzma", "xz"), lzma.LZMADecompressor),
}

_JSON = "application/json"
#: Written by kombu's encoder in place of a value without a JSON form.
_MARK = b'"__type__"'


class Message(virtual.Message):
    """As kombu's; unusual messages are left to kombu, with their errors."""

    accept: Any
    body: Any
    errors: Any

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        body = None if kwargs else _plain_body(payload)
        if body is None:
            try:
                _check_size(payload, channel)
            except DecodeError:
                # Raised when the consumer reads it, as kombu's own errors are.
                self.errors = [sys.exc_info()]
            super().__init__(payload, channel=channel, **kwargs)
            return
        properties = payload["properties"]
        # As kombu's two constructors do with a plain text.
        self._raw = payload
        self.errors = []
        self.channel = channel
        self.delivery_tag = properties["delivery_tag"]
        self.content_type = payload.get("content-type")
        self.content_encoding = payload.get("content-encoding")
        self.delivery_info = properties.get("delivery_info") or {}
        self.headers = payload["headers"]
        self.properties = properties
        self.accept = None
        self.body = body
        self._decoded_cache = None
        self._state = "RECEIVED"

    def _decode(self) -> Any:
        body = self.body
        if (
            self.content_type == _JSON
            and self.accept
            and _JSON in self.accept
            and isinstance(body, bytes)
            and _MARK not in body
        ):
            try:
                # Ours has no number that Python's decoder alone can read.
                if self.headers.get("task") == TASK_NAME:
                    return orjson.loads(body)
            except ValueError:
                pass
            try:
                return json.loads(body.decode())
            except (ValueError, RecursionError):
                pass
        return super()._decode()


def parse(message: bytes) -> Any:
    """Parse the envelope of a queued message. Raises ValueError.

    kombu's decoder creates a parser for each text and searches every object for its own types,
    which are rare. The body is only a string here; its numbers may be of any size.
    """
    if _MARK in message:
        return loads(message)
    try:
        return orjson.loads(message)
    except ValueError:
        # Python's decoder also takes NaN and lone surrogates.
        return json.loads(message)


def task_ids(messages: Iterable[bytes]) -> list[str]:
    """Ids of the messages of tasks; other messages are skipped."""
    found = []
    for message in messages:
        try:
            task_id = parse(message)["headers"]["id"]
        except Exception as error:  # noqa: BLE001 - it has no id
            logger.debug("A message without a task's id: %s", type(error).__name__)
            continue
        if isinstance(task_id, str):
            found.append(task_id)
    return found


def _check_size(payload: Any, channel: Any) -> None:
    """Raise DecodeError for a body that decompresses to too much, or may do so.

    kombu has no bound. Other errors of the body are left to kombu.
    """
    try:
        name = payload["headers"].get("compression")
        start = _DECOMPRESSORS.get(name)
        left = LARGEST_BODY
        if start is not None:
            body = channel.decode_body(payload["body"], payload["properties"].get("body_encoding"))
            # Some formats join streams.
            while body and left >= 0:
                stream = start()
                left -= len(stream.decompress(body, left + 1))
                body = stream.unused_data
    except Exception as error:  # noqa: BLE001 - kombu raises it again
        logger.debug("Not a compressed body: %s", type(error).__name__)
        return
    if left < 0:
        raise DecodeError(f"the body is larger than {LARGEST_BODY} bytes when decompressed")
    if name and start is None:
        raise DecodeError(f"the compression {name!r} has no bound; use gzip, bzip2 or lzma")


def _plain_body(payload: Any) -> bytes | None:
    """The body if it is plain text; None if kombu has to decode it."""
    body, headers = payload.get("body"), payload.get("headers")
    if not (isinstance(body, str) and isinstance(headers, dict)) or "compression" in headers:
        return None
    if payload["properties"].get("body_encoding") != "utf-8":
        return None
    try:
        return body.encode()
    except UnicodeError:
        return None
