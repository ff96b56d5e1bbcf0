"""Lua scripts: the steps of leased messages on the server, each of them atomic.

Each is a file in the folder `lua`. Its header gives the keys, arguments, answer, the effect of a
repeat, and a bound of the cost in Redis commands. Each command takes constant time, or logarithmic
time in a sorted set.

The formats are kombu's (`kombu/transport/redis.py`, 5.7): a queue is a list that producers push on
the left and consumers pop on the right, further priorities are lists named queue, separator,
priority. A leased message lies in the hash `unacked` under its tag, as the JSON array
`[message, exchange, routing key]`, and its tag in the sorted set `unacked_index` by time.

Ours are written with exchange "" and the queue as routing key, which every worker restores to just
the list they came from. Their tags are `kind:priority:fetch:number`, and their score is the
deadline, by the server's clock, after which any worker may restore them:

- `timed:` is a lease, which its worker renews by its own timeout;
- `parked:` is a deferred message, which no worker holds.

Other workers ignore these kinds until the visibility timeout has passed after the deadline. Entries
of stock workers and of earlier versions (`lease:`, `hold:`) have the time of their fetch or last
renewal as score; only RESTORE reads those.

A client repeats a call if the reply is lost, so a repeat of each script is harmless at any time:
fetches have ids, tags are never used twice, and a missing entry is ignored.

On a full server (`maxmemory`, noeviction) Redis refuses commands that may grow, unless the script
has written before. So each script's first write is one that shrinks.

Messages are never decoded and encoded again here: Lua's JSON would turn `[]` into `{}`.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from kombu.transport import redis as stock

from worker.transport.command import Script

#: Kinds of our tags.
LEASE: Final = "timed"
PARKED: Final = "parked"
#: Seconds until a message is tried again after its list has refused it; as in `common.lua`.
REFUSED: Final = 60

_FOLDER = files("worker.transport") / "lua"


def _load(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text()


_COMMON = _load("common")
_QUEUES = _COMMON + _load("queues")

FETCH: Final = Script(_COMMON + _load("fetch"))
ACK: Final = Script(_load("ack"))
NACK: Final = Script(_QUEUES + _load("nack"))
DEFER: Final = Script(_COMMON + _load("defer"))
DEAD_LETTER: Final = Script(_QUEUES + _load("dead_letter"))
RENEW: Final = Script(_COMMON + _load("renew"))
RESTORE: Final = Script(_QUEUES + _load("restore"))
RESTORE_STOCK: Final = Script(_COMMON + _load("restore_stock"))
BIND: Final = Script(_load("bind"))
REBIND: Final = Script(_load("rebind") + stock.REFRESH_BINDING)
