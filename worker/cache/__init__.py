"""Vectors of earlier texts, in Redis: off unless the operator gives it room.

In reading order:

- `entries`   what a text is found by, and what is kept of it
- `revision`  what a model's vectors depend on
- `store`     the entries in Redis: many at once, bounded, and never for long
"""

from worker.cache.entries import Entry, Keys
from worker.cache.store import Cache, open_cache

__all__ = ["Cache", "Entry", "Keys", "open_cache"]
