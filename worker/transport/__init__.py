"""How messages are fetched, leased and acknowledged: a kombu transport for task queues on Redis.

It speaks kombu's own formats, so producers, workers, Flower and `celery purge` of stock Celery use
the same queues at the same time. What differs is how a worker takes messages:

- *Fetch many, atomically.* One script moves up to `capacity.tokens(lane)` tokens of messages from
  the queues into the leased set, for each lane by itself, so that no lane waits for another's room.
  kombu pops first and records later, and loses what dies in between.
- *Leases, not an hour of silence.* A lease has a deadline, `lease_timeout` seconds ahead, and is
  renewed by the event loop every third of that. Jobs of a dead worker run elsewhere soon after.
- *Ends of leases are collected*, sent once a loop tick, and outlive the connection.

In the Celery application: `Celery(…, amqp="worker.transport:AMQP")`. Broker URLs stay `redis://`,
`rediss://`, `redis+socket://`, `unix://` and `sentinel://`; others lead to kombu's own transports.

For the pool, from any thread unless said otherwise:

- `capacity.tokens = f`  set once; `f(lane)` gives the tokens of a lane that may still be fetched
  (loop thread).
- `capacity.delivered = f`  set once; called after messages that came at once. While those are
  delivered `capacity.more_follow` is true (loop thread).
- `lease_of(message)`  a `Lease` (`tag`, `queue`, `redelivered`, `unacked_key`, `index_key`), or
  None on a transport of kombu's own.
- `leases.detach(tag)`  keeps the lease when its channel closes; the pool ends it.
- `leases.ack(tag)`, `nack(tag, requeue=…)`, `release(tags)`, `defer(tag, seconds)`,
  `dead_letter(tag, reason, key)`  end a lease; `message.ack()` and `message.reject()` do the same.
  The next tick sends it to the server; `leases.flush()` sends it at once and `leases.renew()` keeps
  what is left, where no loop turns any more.
- a script with `HDEL` on `unacked_key` and `ZREM` on `index_key`, then
  `leases.remove_completed(tags)`, end leases together with their results; a later `message.ack()`
  does nothing.
- `leases.before_purge = f`  set once; `f(ids)` is called with the ids of up to 500 tasks before a
  purge by this process (`celery purge`) removes their messages. If it raises, they return to their
  queue.
- `leases.stats()`  counters for `inspect stats` and metrics.

Transport options beside kombu's: `lease_timeout` (12 s) for leases that an event loop renews;
`visibility_timeout` (3,600 s) keeps its meaning for those that nobody renews, which are the
messages of stock workers and of consumers without an event loop; `restore_interval` (1 s);
`dead_letter_key`.

A task that holds the event loop up for longer than a lease, as with the solo pool, loses it. Under
an ACL the worker needs, beside what kombu needs, EVAL, EVALSHA, BLMOVE, HMGET, INFO and TIME, and
in scripts GET, SET, RPOP, RPUSH, LPUSH, HGET, HSET, HDEL, HLEN, HSTRLEN, SADD, SREM, ZADD, ZREM,
ZCARD, ZMSCORE and ZRANGEBYSCORE. Redis 6.2 or later, Valkey; not Redis Cluster, as with kombu.

In reading order:

- `leases`: the leases of this process and their pending endings
- `follow_ups`: messages that a task publishes, held until its outcome is stored
- `backpressure`: the remaining capacity of the pool
- `scripts`, `command`: the Lua scripts and their calls
- `lease_store`: the leases of one server
- `message`: decode a message
- `wire`: a connection that does not block
- `renewal`, `fetcher`: renew, restore and fetch on the event loop
- `qos`, `stock_leases`, `guarded_channel`, `channel`, `poller`, `transport`: the adapters to kombu
- `connection`: the adapters to Celery
"""

from worker.transport.backpressure import FetchCapacity, capacity
from worker.transport.connection import AMQP, Connection, puts_back
from worker.transport.follow_ups import EndedElsewhere, Following, following
from worker.transport.leases import Lease, Leases, lease_of, leases
from worker.transport.transport import SentinelTransport, Transport

__all__ = [
    "AMQP",
    "Connection",
    "EndedElsewhere",
    "FetchCapacity",
    "Following",
    "Lease",
    "Leases",
    "SentinelTransport",
    "Transport",
    "capacity",
    "following",
    "lease_of",
    "leases",
    "puts_back",
]
