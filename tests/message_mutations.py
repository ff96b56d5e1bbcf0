"""Invalid messages, made from the messages of producers."""

from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.malformed import VALUES

#: Placeholder for a value that is inserted verbatim.
_HOLE = "\ue000hole\ue000"
#: The one eta that is far ahead, so that its message waits.
LATER = "2999-01-01T00:00:00+00:00"

#: Values that a worker reads, in their written form, by key.
_LIMITS = [b"[NaN,null]", b"[null,Infinity]", b"[-1,-1]", b'["1","2"]', b"[1]", b"3", b"{}"]
_TIMES = [b"0", b"-1", b"1e400", b'"tomorrow"', b'"0001-01-01T00:00:00"', b"[]", b'"10000-01-01"']
_LINKS = [
    *(b"[5]", b"[{}]", b'[{"task":5}]', b'{"task":"x"}', b'"x"', b"[[]]", b"[null]", b"5"),
    *(b'[{"task":"nobody.knows","args":[],"kwargs":{},"options":{}}]', b'[{"task":"x","args":5}]'),
    *(b'[{"task":"x","options":5}]', b'[{"task":"celery.group","kwargs":{"tasks":5}}]'),
]
TARGETED: dict[str, list[bytes]] = {
    "timelimit": _LIMITS,
    "eta": [*_TIMES, json.dumps(LATER).encode()],
    "expires": [*_TIMES, b'"2999-01-01"', b'"1999-01-01T00:00:00+00:00"'],
    "task": [b'"nobody.knows"', b'"embedq.batch"', b'"celery.map"', b'"celery.group"', b"[]"],
    "id": [b"5", b"null", b"{}", b"[]", b'"\\ud800"', b"1e400", b"true"],
    "retries": [b'"x"', b"-1", b"1e400", b"[]"],
    "stamped_headers": [b"5", b'"abc"', b'{"a":1}', b"[5,{}]", b'["a"]', b"[[]]"],
    "stamps": [b"5", b"[]", b'{"a":{}}', b'"x"'],
    "shadow": [b"5", b"{}", b'"' + b"s" * 5000 + b'"'],
    "ignore_result": [b'"yes"', b"5", b"{}", b"true"],
    "callbacks": _LINKS,
    "errbacks": _LINKS,
    "chain": _LINKS,
    "chord": [*_LINKS, b'{"task":"x","options":{}}', b"{}"],
    "group": [b"5", b"{}", b"[]"],
    "compression": [b'"zlib"', b'"application/x-gzip"', b"5", b"{}", b'"nonsense"'],
    "content-type": [b'"application/x-python-serialize"', b"5", b'"text/plain"', b"null"],
    "content-encoding": [b'"binary"', b'"utf-16"', b'"rot13"', b"5", b"{}", b'"zip"'],
    "body_encoding": [b'"base64"', b'"utf-8"', b'"nonsense"', b"5", b"{}", b"null"],
    "delivery_info": [b'{"consumer_tag":{}}', b'{"redelivered":[]}', b"5", b"[]", b'"x"'],
    "redelivered": [b"true", b"5", b'"no"'],
    "priority": [b"-1", b"99", b'"x"', b"{}", b"1e400"],
    "embedq_submitted_at": [b"NaN", b"1e308", b"-1e308", b'"now"', b"0.0"],
    "embedq_owner": [b"5", b'"' + b"o" * 5000 + b'"', b'"\\ud800"', b"{}"],
    "traceparent": [b'"00-zz"', b"5", b"{}", b'"00-' + b"0" * 32 + b'"'],
}
#: Keys that no producer of the seeds sends, by their place.
_ADDED = {
    "headers": ["compression", "redelivered", "embedq_owner", "traceparent", "embedq_submitted_at"],
    "properties": ["content_type", "expiration", "headers", "consumer_tag", "redelivered"],
    "embed": ["callbacks", "errbacks", "chain", "chord"],
}


@dataclass(frozen=True)
class Bad:
    """One message of the queue. It contains `mark`; `id` is its job's, if any."""

    mark: str
    id: str | None
    raw: bytes
    later: bool = False
    #: Whether its result is ignored, so that no result shows its end.
    ignored: bool = False


class Mutations:
    """Bad messages from good ones, the same ones for the same seed."""

    def __init__(self, seeds: Sequence[bytes], seed: int) -> None:
        self._random = random.Random(seed)
        self._seeds = [json.loads(message) for message in seeds]

    def make(self, count: int) -> Iterator[Bad]:
        """Yield so many messages, each with its own mark and job id."""
        for number in range(count):
            yield self._bad(f"fuzz-{number:06d}")

    def _bad(self, mark: str) -> Bad:
        rng = self._random
        message = copy.deepcopy(rng.choice(self._seeds))
        headers = message["headers"]
        headers |= {"id": mark, "root_id": mark}
        message["properties"]["correlation_id"] = mark
        body = _body_of(message)
        holes: list[bytes] = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            self._change(message, body, holes)
        raw = _sealed(message, body, holes)
        raw = raw[:1] + f'"mark":"{mark}",'.encode() + raw[1:]
        if rng.random() < 0.15:
            raw = self._spoil(raw, mark)
        return _told(mark, raw)

    def _change(self, message: dict[str, Any], body: list[Any], holes: list[bytes]) -> None:
        """Delete, replace or add one value."""
        rng = self._random
        embed = body[2] if len(body) > 2 and isinstance(body[2], dict) else {}
        places: list[Any] = [message, body]
        for name in ("headers", "properties"):
            if isinstance(message.get(name), dict):
                places += [message[name]] * 4
                if name == "properties" and isinstance(message[name].get("delivery_info"), dict):
                    places.append(message[name]["delivery_info"])
        places += [embed] * 2
        place = rng.choice([place for place in places if place or place is embed])
        for name, keys in _ADDED.items():
            if place is (embed if name == "embed" else message.get(name)) and rng.random() < 0.3:
                place.setdefault(rng.choice(keys), None)
        if not place:
            return
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if rng.random() < 0.15:
            del place[key]
            return
        place[key] = f"{_HOLE}{len(holes)}{_HOLE}"
        known = TARGETED.get(key, []) if isinstance(key, str) else []
        holes.append(rng.choice(known if known and rng.random() < 0.7 else VALUES))

    def _spoil(self, raw: bytes, mark: str) -> bytes:
        """Return bytes that are not, or hardly, an envelope."""
        rng = self._random
        keep = raw.index(b",")
        at = rng.randrange(keep, len(raw))
        ways: list[Callable[[], bytes]] = [
            lambda: raw[:at],
            lambda: raw[:at] + rng.randbytes(20) + raw[at:],
            lambda: raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :],
            lambda: raw[:-1] + b',"headers":{},"properties":5}',
            lambda: raw + raw,
            lambda: mark.encode() + rng.randbytes(200),
            lambda: raw[:keep] + b',"body":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            lambda: raw[:keep] + b',"headers":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
            lambda: json.dumps(mark).encode(),
            lambda: json.dumps([mark]).encode(),
        ]
        return rng.choice(ways)()


def deep_body(job_id: str, seed: bytes, depth: int = 100_000) -> bytes:
    """A message with a valid envelope and a nested body."""
    message = json.loads(seed)
    message["headers"] |= {"id": job_id}
    message["properties"]["body_encoding"] = "utf-8"
    message["body"] = "[" * depth + "]" * depth
    return json.dumps(message).encode()


def without(seed: bytes, job_id: str, header: str) -> bytes:
    """A message that lacks a header."""
    message = json.loads(seed)
    message["headers"] |= {"id": job_id}
    del message["headers"][header]
    return json.dumps(message).encode()


def _body_of(message: dict[str, Any]) -> list[Any]:
    body = message["body"]
    if message["properties"].get("body_encoding") == "base64":
        body = base64.b64decode(body)
    found: list[Any] = json.loads(body)
    return found


def _sealed(message: dict[str, Any], body: list[Any], holes: list[bytes]) -> bytes:
    """The envelope with its body as bytes, with the values of the placeholders inserted."""

    def filled(raw: bytes) -> bytes:
        for number, value in enumerate(holes):
            raw = raw.replace(json.dumps(f"{_HOLE}{number}{_HOLE}").encode(), value)
        return raw

    if "body" in message and not str(message["body"]).startswith(_HOLE):
        inner = filled(json.dumps(body).encode())
        properties = message.get("properties")
        plain = isinstance(properties, dict) and properties.get("body_encoding") != "base64"
        message["body"] = (
            inner.decode("utf-8", "surrogateescape") if plain else base64.b64encode(inner).decode()
        )
    return filled(json.dumps(message).encode())


def _told(mark: str, raw: bytes) -> Bad:
    """A message with the fields that a worker may read."""
    try:
        headers = json.loads(raw.decode("utf-8", "surrogateescape"))["headers"]
        job_id = headers.get("id")
        text = job_id if isinstance(job_id, str) else None
        later = headers.get("eta") == LATER
        # A batch's coordinator has no result.
        ignored = bool(headers.get("ignore_result")) or headers.get("task") == "embedq.batch"
        return Bad(mark, text, raw, later, ignored)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Bad(mark, None, raw)
