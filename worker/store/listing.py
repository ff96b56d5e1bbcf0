"""Pages of a tenant's ids, from a sorted set by time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

import redis

#: Most ids of one round trip.
_STEP = 100
#: Most records that one page reads: the first number for a small page; for a large page its limit,
#: up to the second number.
_LEAST_READ, _MOST_READ = 200, 1_000
T = TypeVar("T")


def page_of_many(
    client: redis.Redis,
    listing: str | Sequence[str],
    read_many: Callable[[Sequence[str]], Sequence[T | None]],
    *,
    limit: int,
    after: str | None,
    wanted: Callable[[T], bool],
    newest_first: bool = True,
) -> tuple[list[T], str | None]:
    """Up to `limit` things after the one with the id `after`, and the `after` of the next page.

    The latter is None on the last page. `listing` may be several sorted sets, the newest first.
    `read_many` returns the things of ids in one round trip, None for a missing one. A page reads a
    bounded number of records, so it may hold fewer than `limit` wanted things, or be empty, and
    still have a next page. Raises KeyError if `after` is in no listing.
    """
    listings = [listing] if isinstance(listing, str) else list(listing)
    if not newest_first:
        listings.reverse()
    found: list[T] = []
    last = after
    left = min(max(limit + 1, _LEAST_READ), _MOST_READ)
    for some in _ids(client, listings, after, limit + 1, newest_first=newest_first):
        ids = some[:left]
        for thing_id, thing in zip(ids, read_many(ids), strict=True):
            if thing is not None and wanted(thing):
                if len(found) == limit:
                    return found, last
                found.append(thing)
            last = thing_id
        left -= len(ids)
        if not left:
            return found, last
    return found, None


def _ids(
    client: redis.Redis,
    listings: Sequence[str],
    after: str | None,
    step: int,
    *,
    newest_first: bool,
) -> Iterator[list[str]]:
    """The ids after `after`: first `step` of them, then twice as many, up to _STEP at once."""
    first, start = _start(client, listings, after, newest_first=newest_first)
    for listing in listings[first:]:
        while True:
            step = min(step, _STEP)
            raw = client.zrange(listing, start, start + step - 1, desc=newest_first)
            ids = [one.decode() for one in cast("list[bytes]", raw)]
            if ids:
                yield ids
            if len(ids) < step:
                break
            start += step
            step *= 2
        start = 0


def _start(
    client: redis.Redis, listings: Sequence[str], after: str | None, *, newest_first: bool
) -> tuple[int, int]:
    """The index of the listing that holds `after`, and the next rank there. Raises KeyError."""
    if after is None:
        return 0, 0
    rank_of = client.zrevrank if newest_first else client.zrank
    for at, listing in enumerate(listings):
        rank = cast("int | None", rank_of(listing, after))
        if rank is not None:
            return at, rank + 1
    raise KeyError(after)
