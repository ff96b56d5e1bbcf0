"""Messages are decoded as kombu decodes them, only faster."""

from __future__ import annotations

import bz2
import lzma
import uuid
import zlib
from functools import partial
from typing import Any

import brotli
import pytest
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.message import Message as BaseMessage
from kombu.transport import virtual
from kombu.transport.virtual import Base64
from kombu.utils.json import dumps

from worker.contract import messages
from worker.contract.jobs import DEFAULT_OPTIONS
from worker.transport.message import LARGEST_BODY, Message, parse


class PlainChannel:
    """The part of a channel that a message needs."""

    def decode_body(self, body: Any, encoding: str | None = None) -> Any:
        return Base64().decode(body) if encoding == "base64" else body


def message(body: Any, *, accept: Any = frozenset({"application/json"}), **fields: Any) -> Message:
    payload = {
        "body": body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "properties": {"delivery_tag": "tag", "body_encoding": fields.pop("encoding", "utf-8")},
        **fields,
    }
    read = Message(payload, channel=PlainChannel())
    read.accept = accept
    return read


def test_a_body_is_decoded_whatever_its_envelope() -> None:
    value = [[["naïve", 1.5, 10**30, None]], {}, {"chain": None}]
    assert message(dumps(value)).payload == value
    assert message(Base64().encode(dumps(value)), encoding="base64").payload == value


@pytest.mark.parametrize("text", ["plain", "naïve 💡"])
def test_a_plain_envelope_is_read_as_kombu_reads_it(text: str) -> None:
    for envelope in (
        parse(messages.envelope("one", [text], DEFAULT_OPTIONS, "embedq")),
        parse(messages.of_task("another", "one", [text, 10**30], "embedq")),
    ):
        ours = Message(envelope, channel=PlainChannel())
        theirs = virtual.Message(envelope, channel=ours.channel)
        for slot in ("_raw", *BaseMessage.__slots__):
            if slot != "__dict__":
                assert getattr(ours, slot) == getattr(theirs, slot), slot
        assert ours.errors == theirs.errors == []
        ours.accept = theirs.accept = frozenset({"application/json"})
        assert ours.payload == theirs.payload


def test_a_text_without_utf_8_is_left_to_kombu() -> None:
    assert message('[["\ud800"], {}, {}]').errors


def test_types_that_kombu_adds_to_json_survive() -> None:
    value = [[uuid.uuid4()], {}, {}]
    assert message(dumps(value)).payload == value
    assert parse(dumps({"headers": value}).encode()) == {"headers": value}


def test_a_body_that_is_no_json_raises_what_kombu_raises() -> None:
    with pytest.raises(DecodeError):
        message("[[").decode()
    with pytest.raises(DecodeError):
        message(Base64().encode(b"\xff"), encoding="base64").decode()


COMPRESSIONS = {
    "gzip": zlib.compress,
    "bzip2": bz2.compress,
    "application/x-lzma": partial(lzma.compress, preset=0),
}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_compressed_body_is_read_up_to_a_size(name: str) -> None:
    def compressed(body: bytes) -> Message:
        encoded = Base64().encode(COMPRESSIONS[name](body))
        return message(encoded, encoding="base64", headers={"compression": name})

    assert compressed(b'["text"]').decode() == ["text"]
    bomb = compressed(b"0" * (LARGEST_BODY + 1))
    assert len(bomb.body) < 1_000_000
    with pytest.raises(DecodeError, match="67108864 bytes"):
        bomb._reraise_error()


def test_a_bomb_of_many_streams_is_not_decompressed() -> None:
    body = Base64().encode(bz2.compress(b"0" * 10_000_000) * 7)
    bomb = message(body, encoding="base64", headers={"compression": "bzip2"})
    with pytest.raises(DecodeError, match="67108864 bytes"):
        bomb._reraise_error()


def test_a_body_in_a_format_without_a_bound_is_refused_with_the_formats_that_have_one() -> None:
    body = brotli.compress(b"0" * (LARGEST_BODY + 1))
    bomb = message(
        Base64().encode(body), encoding="base64", headers={"compression": "application/x-brotli"}
    )
    assert bomb.body == body
    with pytest.raises(DecodeError, match="x-brotli' has no bound; use gzip, bzip2 or lzma"):
        bomb._reraise_error()


@pytest.mark.parametrize("name", ["gzip", "bzip2", "lzma", "unknown", 7, ["gzip"]])
def test_a_body_that_cannot_be_decompressed_is_an_error_of_its_message(name: object) -> None:
    assert message("bm90", encoding="base64", headers={"compression": name}).errors


def test_content_that_is_not_accepted_is_not_read() -> None:
    with pytest.raises(ContentDisallowed):
        message("[]", accept=frozenset({"application/x-yaml"})).decode()
    with pytest.raises(ContentDisallowed):
        message("[]", **{"content-type": "application/x-python-serialize"}).decode()
