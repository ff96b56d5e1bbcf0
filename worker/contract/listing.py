"""Pages of what an owner has: ids in a sorted set by their time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

import redis

#: Ids read in one round trip.
_STEP = 100
#: Things that one page with a condition reads at most.
_SCANNED = 2_000
T = TypeVar("T")


def page(
    client: redis.Redis,
    listing: str,
    read: Callable[[str], T | None],
    *,
    limit: int,
    after: str | None,
    newest_first: bool = True,
) -> tuple[list[T], bool]:
    """Up to `limit` things after the one with the id `after`, and whether there are more.

    `read` gives the thing of an id, or None where it is not to be shown. Raises KeyError where
    `after` is not in the listing.
    """
    found: list[T] = []
    for thing_id in _ids(client, listing, after, newest_first=newest_first):
        thing = read(thing_id)
        if thing is None:
            continue
        if len(found) == limit:
            return found, True
        found.append(thing)
    return found, False


def page_of_many(
    client: redis.Redis,
    listing: str,
    read_many: Callable[[Sequence[str]], Sequence[T | None]],
    *,
    limit: int,
    after: str | None,
    wanted: Callable[[T], bool],
) -> tuple[list[T], str | None]:
    """Up to `limit` things, newest first, and the `after` of the next page; None if that is empty.

    `read_many` gives the things of ids in one round trip, None for one that is gone. A page may
    hold fewer than `limit` wanted ones, even none, and still have a next one. Raises KeyError where
    `after` is not in the listing.
    """
    start = _start(client, listing, after, newest_first=True)
    found: list[T] = []
    last = after
    for offset in range(start, start + _SCANNED, limit):
        raw = cast("list[bytes]", client.zrevrange(listing, offset, offset + limit - 1))
        ids = [one.decode() for one in raw]
        for thing_id, thing in zip(ids, read_many(ids), strict=True):
            if thing is not None and wanted(thing):
                if len(found) == limit:
                    return found, last
                found.append(thing)
            last = thing_id
        if len(ids) < limit:
            return found, None
    return found, last


def _ids(
    client: redis.Redis, listing: str, after: str | None, *, newest_first: bool
) -> Iterator[str]:
    start = _start(client, listing, after, newest_first=newest_first)
    while True:
        raw = client.zrange(listing, start, start + _STEP - 1, desc=newest_first)
        ids = cast("list[bytes]", raw)
        yield from (one.decode() for one in ids)
        if len(ids) < _STEP:
            return
        start += _STEP


def _start(client: redis.Redis, listing: str, after: str | None, *, newest_first: bool) -> int:
    """The rank of the first one after `after`. Raises KeyError."""
    if after is None:
        return 0
    rank_of = client.zrevrank if newest_first else client.zrank
    rank = cast("int | None", rank_of(listing, after))
    if rank is None:
        raise KeyError(after)
    return rank + 1
