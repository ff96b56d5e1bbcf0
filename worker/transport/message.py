"""kombu's message, its JSON decoded at the speed of Python's own decoder."""

from __future__ import annotations

import json
from typing import Any

import orjson
from kombu.transport import virtual
from kombu.utils.json import loads

_JSON = "application/json"
#: What kombu's encoder writes in place of a value that JSON does not know.
_MARK = b'"__type__"'


class Message(virtual.Message):
    """As kombu's; whatever is out of the ordinary is left to kombu, its errors included."""

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
                return json.loads(body.decode())
            except ValueError:
                pass
        return super()._decode()


def parse(message: bytes) -> Any:
    """The envelope as it lies in the queue. Raises ValueError.

    kombu's decoder makes a new parser for each text and looks into every object for its own types,
    which are rare. The body, where numbers may be of any size, is only a string here.
    """
    if _MARK in message:
        return loads(message)
    try:
        return orjson.loads(message)
    except ValueError:
        # Python's decoder also takes NaN and lone surrogates.
        return json.loads(message)
