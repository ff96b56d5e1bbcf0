"""Valid requests and a careless or hostile caller's variants of them. Pure and deterministic."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

import orjson

from tests.malformed import (
    DISPOSITIONS,
    ENCODINGS,
    HEADERS,
    QUERIES,
    TARGETS,
    TYPES,
    VALUES,
    WHOLES,
)

BOUNDARY = "borderline"
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Request:
    """A request as written by its caller; the head is latin-1, as HTTP/1.1 has it."""

    method: str
    path: str
    headers: Headers = ()
    body: bytes = b""

    def raw(self) -> bytes:
        """The bytes of the request; with a Content-Length unless a header states the length."""
        given = {name for name, _ in self.headers}
        usual = (("Host", "localhost"), ("Connection", "close"))
        headers = (*self.headers, *(one for one in usual if one[0] not in given))
        if not {name for name, _ in headers} & {"Content-Length", "Transfer-Encoding"}:
            headers = (*headers, ("Content-Length", str(len(self.body))))
        lines = [f"{self.method} {self.path} HTTP/1.1", *(": ".join(one) for one in headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + self.body

    def with_header(self, name: str, value: str) -> Request:
        """The same request with another value, or another header."""
        kept = tuple(one for one in self.headers if one[0] != name)
        return replace(self, headers=(*kept, (name, value)))


def json_request(path: str, body: Mapping[str, Any]) -> Request:
    """A `POST` in every client's usual form."""
    return Request("POST", path, (("Content-Type", "application/json"),), orjson.dumps(body))


def form_request(path: str, *parts: bytes) -> Request:
    """A `POST` of a multipart form."""
    content = ("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
    return Request("POST", path, (content,), form(*parts))


def form(*parts: bytes) -> bytes:
    """The body of a multipart form (RFC 7578); each part has its own headers."""
    edge = f"--{BOUNDARY}".encode()
    return b"".join(edge + b"\r\n" + part + b"\r\n" for part in parts) + edge + b"--\r\n"


def part(disposition: str, content: bytes) -> bytes:
    """One part of a form, to be mutated or not."""
    return f"Content-Disposition: form-data; {disposition}\r\n\r\n".encode() + content


Mutation = Callable[[Random, Request], Request]


def mutated(valid: Sequence[Request], count: int, seed: int) -> Iterator[Request]:
    """`count` different requests: each mutation in turn on the next of `valid`; some have two."""
    chance, number, seen = Random(seed), 0, set[Request]()
    while len(seen) < count:
        request = valid[number % len(valid)]
        ways = _OF_FORMS if b"form-data" in request.body else _OF_JSON if request.body else _OF_ANY
        for _ in range(chance.choice((1, 1, 1, 2))):
            way = ways[(number // len(valid) + chance.randrange(2)) % len(ways)]
            request = way(chance, request)
        number += 1
        if request not in seen:
            seen.add(request)
            yield request


def _member(chance: Random, request: Request) -> Request:
    """Another value for one member, or a member that does not exist."""
    name = chance.choice([*_object(request), "input", "dimensions", "no such"])
    return replace(request, body=_spelled(request, {name: chance.choice(VALUES)}))


def _missing(chance: Random, request: Request) -> Request:
    members = _object(request)
    members.pop(chance.choice([*members, "none"]), None)
    return replace(request, body=orjson.dumps(members))


def _twice(chance: Random, request: Request) -> Request:
    """One key with two values (RFC 8259: the names within an object SHOULD be unique)."""
    name = chance.choice([*_object(request), "input"])
    again = orjson.dumps(name) + b":" + chance.choice(VALUES)
    return replace(request, body=request.body[:-1] + b"," + again + b"}")


def _odd_name(chance: Random, request: Request) -> Request:
    name = chance.choice([b'"\\ud800"', b'"\\u0000"', b'""', b'"' + b"n" * 9000 + b'"', b"7"])
    return replace(request, body=request.body[:-1] + b"," + name + b":1}")


def _whole(chance: Random, request: Request) -> Request:
    return replace(request, body=chance.choice(WHOLES))


def _flipped(chance: Random, request: Request) -> Request:
    """Replace a few bytes."""
    body = bytearray(request.body or b"\x00")
    for _ in range(chance.randrange(1, 5)):
        body[chance.randrange(len(body))] = chance.randrange(256)
    return replace(request, body=bytes(body))


def _cut(chance: Random, request: Request) -> Request:
    return replace(request, body=request.body[: chance.randrange(len(request.body) + 1)])


def _repeated(chance: Random, request: Request) -> Request:
    return replace(request, body=request.body * chance.randrange(2, 5))


def _recoded(chance: Random, request: Request) -> Request:
    """Another encoding of the characters, stated or not."""
    charset = chance.choice(["utf-16", "utf-32", "utf-7", "cp500", "utf-8-sig"])
    body = request.body.decode("utf-8", "replace").encode(charset, "replace")
    told = chance.choice([charset, "utf-8", "x-none"])
    request = request.with_header("Content-Type", f"application/json; charset={told}")
    return replace(request, body=body)


def _packed(chance: Random, request: Request) -> Request:
    """A gzip body, valid or broken, under the right or another encoding's name."""
    packed = gzip.compress(request.body, mtime=0)
    middle = len(packed) // 2
    body = chance.choice(
        [
            *(packed, packed[:-4], packed[:middle], packed * 3, packed + b"junk", packed[2:]),
            packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :],
            *(gzip.compress(packed, mtime=0), zlib.compress(request.body), request.body),
            gzip.compress(b"", mtime=0) * 2000 + packed,
            _bomb(),
        ]
    )
    return replace(request.with_header("Content-Encoding", chance.choice(ENCODINGS)), body=body)


@cache
def _bomb() -> bytes:
    return gzip.compress(bytes(20 * 2**20), mtime=0)


def _typed(chance: Random, request: Request) -> Request:
    return request.with_header("Content-Type", chance.choice(TYPES))


def _told(chance: Random, request: Request) -> Request:
    """A few more headers."""
    for name in chance.sample(sorted(HEADERS), 3):
        request = request.with_header(name, chance.choice(HEADERS[name]))
    return request


def _asked(chance: Random, request: Request) -> Request:
    """Another address."""
    return replace(request, path=request.path + chance.choice(QUERIES))


def _placed(chance: Random, request: Request) -> Request:
    """A target in another form."""
    return replace(request, path=chance.choice(TARGETS) + request.path)


def _grown(chance: Random, request: Request) -> Request:
    """A member, or the whole body, with a random value."""
    value = orjson.dumps(_value(chance, chance.randrange(6)))
    if chance.randrange(4) == 0:
        return replace(request, body=value)
    name = chance.choice([*_object(request), "input", "long", "metadata"])
    return replace(request, body=_spelled(request, {name: value}))


def _value(chance: Random, depth: int) -> Any:
    kind = chance.randrange(8 if depth else 5)
    if kind == 0:
        return chance.choice((None, True, False, 0, -1, 2**53, -(2**63), 1e308, 5e-324))
    if kind == 1:
        return chance.randrange(-(2**40), 2**40)
    if kind in (2, 3, 4):
        points = chance.choice(((32, 127), (0, 32), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF)))
        return "".join(chr(chance.randrange(*points)) for _ in range(chance.randrange(40)))
    count = chance.randrange(5)
    if kind in (5, 6):
        return [_value(chance, depth - 1) for _ in range(count)]
    return {str(_value(chance, 0)): _value(chance, depth - 1) for _ in range(count)}


def _crossed(chance: Random, request: Request) -> Request:
    """A piece of the body in another place."""
    first, second = sorted(chance.randrange(len(request.body) + 1) for _ in "ab")
    piece, at = request.body[first:second], chance.randrange(len(request.body) + 1)
    return replace(request, body=request.body[:at] + piece + request.body[at:])


def _called(chance: Random, request: Request) -> Request:
    """Another method."""
    method = chance.choice(["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "post"])
    return replace(request, method=method)


def _parted(chance: Random, request: Request) -> Request:
    """A form with odd parts."""
    parts = [part(chance.choice(DISPOSITIONS), b"{}") for _ in range(chance.choice((1, 2, 40)))]
    parts += request.body.split(b"\r\n", 1)[1:]
    chance.shuffle(parts)
    return replace(request, body=form(*parts))


def _edged(chance: Random, request: Request) -> Request:
    """A form with misplaced boundaries."""
    edge = f"--{BOUNDARY}".encode()
    others = [b"", b"--", edge[:-1], edge + b"--", edge + b"x" * 5000, edge + b"\n", b"\r\n" * 3000]
    return replace(request, body=request.body.replace(edge, chance.choice(others), 1))


def _object(request: Request) -> dict[str, Any]:
    """The members of a body; {} if it is not an object, or nested too deeply to be written."""
    if b"[" * 99 in request.body or b'{"a":' * 99 in request.body:
        return {}
    try:
        body = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _spelled(request: Request, changes: Mapping[str, bytes]) -> bytes:
    members = {name: orjson.dumps(value) for name, value in _object(request).items()} | changes
    spelled = (orjson.dumps(name) + b":" + value for name, value in members.items())
    return b"{" + b",".join(spelled) + b"}"


_OF_ANY: Sequence[Mutation] = (_told, _asked, _called, _typed, _whole, _placed)
_OF_JSON: Sequence[Mutation] = (
    *(_member, _packed, _twice, _told, _flipped, _whole, _recoded, _member, _typed, _cut),
    *(_asked, _missing, _odd_name, _packed, _called, _repeated, _member),
    *(_grown, _crossed, _placed, _grown),
)
_OF_FORMS: Sequence[Mutation] = (
    *(_parted, _edged, _flipped, _cut, _typed, _told, _parted, _whole, _asked, _packed, _repeated),
    *(_crossed, _placed),
)
