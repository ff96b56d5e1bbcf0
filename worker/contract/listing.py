"""Pages of what an owner has: ids in a sorted set by their time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import redis

#: Ids read in one round trip.
_STEP = 100
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


def _ids(
    client: redis.Redis, listing: str, after: str | None, *, newest_first: bool
) -> Iterator[str]:
    start = 0
    if after is not None:
        rank_of = client.zrevrank if newest_first else client.zrank
        rank = cast("int | None", rank_of(listing, after))
        if rank is None:
            raise KeyError(after)
        start = rank + 1
    while True:
        raw = client.zrange(listing, start, start + _STEP - 1, desc=newest_first)
        ids = cast("list[bytes]", raw)
        yield from (one.decode() for one in ids)
        if len(ids) < _STEP:
            return
        start += _STEP
