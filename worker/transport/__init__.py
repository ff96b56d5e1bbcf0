"""A kombu transport for task queues on Redis: fetch, lease and acknowledge messages.

It uses kombu's own formats, so producers, workers, Flower and `celery purge` of stock Celery can
use the same queues at the same time. A worker takes messages differently:

- *Fetch many, atomically.* One script moves up to `capacity.tokens(lane)` tokens of messages from
  the queues into the leased set. Each lane is separate, so it never waits for the capacity of
  another. kombu pops first and records later, and loses messages on a crash in between.
- *Leases, not an hour of silence.* A lease has a deadline, `lease_timeout` seconds ahead, and the
  event loop renews it every third of that. Jobs of a dead worker run elsewhere soon after.
- *Ends of leases are collected*, sent once a loop tick, and survive a lost connection.

In the Celery application: `Celery(…, amqp="worker.transport:AMQP")`. Broker URLs stay `redis://`,
`rediss://`, `redis+socket://`, `unix://` and `sentinel://`; others lead to kombu's own transports.

For the pool, from any thread unless said otherwise:

- `capacity.tokens = f`  set once; `f(lane)` gives the tokens of a lane that may still be fetched
  (loop thread).
- `capacity.delivered = f`  set once; called after messages that are delivered together. During
  their delivery `capacity.more_follow` is true (loop thread).
- `lease_of(message)`  a `Lease` (`tag`, `queue`, `redelivered`, `unacked_key`, `index_key`), or
  None on a transport of kombu's own.
- `leases.detach(tag)`  keeps the lease when its channel closes; the pool ends it.
- `leases.ack(tag)`, `nack(tag, requeue=…)`, `release(tags)`, `defer(tag, seconds)`,
  `dead_letter(tag, reason, key)`  end a lease; `message.ack()` and `message.reject()` do the same.
  The next tick sends it to the server. Once the loop has stopped, `leases.flush()` sends it at once
  and `leases.renew()` renews the remaining leases.
- a script with `HDEL` on `unacked_key` and `ZREM` on `index_key`, then
  `leases.remove_completed(tags)`, end leases together with their results; a later `message.ack()`
  has no effect.
- `leases.before_purge = f`  set once; `f(ids)` is called with the ids of up to 500 tasks before a
  purge by this process (`celery purge`) removes their messages. If it raises, they return to their
  queue.
- `leases.stats()`  counters for `inspect stats` and metrics.

Transport options in addition to kombu's: `lease_timeout` (12 s) for leases that an event loop
renews; `restore_interval` (1 s); `dead_letter_key`. `visibility_timeout` (3,600 s) keeps its
meaning for leases without renewal: those of stock workers and of consumers without an event loop.

A task that blocks the event loop for longer than a lease, as with the solo pool, loses its lease.
Under an ACL the worker needs the commands of kombu and EVAL, EVALSHA, BLMOVE, HMGET, INFO and TIME,
and in scripts GET, SET, RPOP, RPUSH, LPUSH, HGET, HSET, HDEL, HLEN, HSTRLEN, SADD, SREM, ZADD,
ZREM, ZCARD, ZMSCORE and ZRANGEBYSCORE. Redis 6.2 or later, Valkey; not Redis Cluster, as with
kombu.

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
