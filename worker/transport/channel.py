"""kombu's Redis channel, with task queues fetched by lease; everything else is kombu's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import redis
from kombu.transport import redis as stock
from kombu.utils.scheduling import cycle_by_name

from worker.contract.lanes import Lane, lane_of
from worker.transport import scripts, stock_leases
from worker.transport.backpressure import capacity
from worker.transport.fetcher import Fetcher
from worker.transport.follow_ups import broker_of
from worker.transport.guarded_channel import GuardedChannel
from worker.transport.lease_store import TAGS_A_CALL, Demand, LeaseStore, QueueList, open_store
from worker.transport.leases import Lease, Leases, LeaseUpdates, leases
from worker.transport.message import Message, parse, task_ids
from worker.transport.qos import QoS
from worker.transport.wire import Wire

logger = logging.getLogger(__name__)

#: Transport options in addition to kombu's.
_OPTIONS = ("lease_timeout", "restore_interval", "dead_letter_key")


class Channel(GuardedChannel):
    """A channel to one Redis or Valkey server."""

    Message = Message
    QoS = QoS
    from_transport_options = (*stock.Channel.from_transport_options, *_OPTIONS)
    _sentinel_manager: Any
    leases: Leases = leases
    #: Seconds; transport options of these names replace them.
    lease_timeout = 12.0
    restore_interval = 1.0
    dead_letter_key = "unacked_dead_letters"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.owner = object()
        self._receivers: dict[str, Callable[[Any], Any]] = {}
        self._sync_client: redis.Redis | None = None
        self._store: LeaseStore | None = None
        super().__init__(*args, **kwargs)
        self._lease_cycle = cycle_by_name(self.queue_order_strategy)()
        self.fetcher = Fetcher(self)

    # Seen by kombu.

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any
    ) -> Any:
        """Consume; by lease if messages are acknowledged and do not come by pub/sub."""
        if self.ack_emulation and not no_ack and queue not in self._fanout_queues:
            self._receivers[queue] = callback
            self._lease_cycle.update(list(self._receivers))
            # Created on first access; from then on it releases leases at exit.
            _ = self.qos
        return super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """One message, leased in the step that takes it."""
        if no_ack or not self.ack_emulation:
            return super().basic_get(queue, no_ack=no_ack, **kwargs)
        # As above, for a program that takes messages one by one.
        _ = self.qos
        store = self.store
        fetch = store.fetch(self._lists([queue]), renewed=False, count=1, tokens_bytes=1)
        try:
            answer = store.run(fetch.command)
        except redis.RedisError:
            self.leases.add_updates(store, LeaseUpdates(releases=fetch.possible_tags()))
            raise
        _, rows = store.read_fetch(fetch, answer, self.owner)
        for lease, message in rows:
            self.leases.add([lease])
            return self._read(lease, message)
        return None

    def close(self) -> None:
        if not self.closed:
            self.fetcher.close()
        super().close()

    def _purge(self, queue: str) -> int:
        """Remove the waiting messages, after a call of `leases.before_purge` with their ids."""
        purged = self.leases.before_purge
        if purged is None:
            return int(super()._purge(queue))
        store, lists, removed = self.store, self._lists([queue]), 0
        waiting = self._size(queue)
        while removed < waiting:
            count = min(waiting - removed, TAGS_A_CALL)
            fetch = store.fetch(lists, renewed=True, count=count, tokens_bytes=capacity.max_bytes)
            _, rows = store.read_fetch(fetch, store.run(fetch.command), self.owner)
            if not rows:
                break
            tags = [lease.tag for lease, _ in rows]
            try:
                purged(task_ids(message for _, message in rows))
            except BaseException:
                store.send(LeaseUpdates(releases=tags))
                raise
            store.send(LeaseUpdates(acks=tags))
            removed += len(rows)
        return removed

    @property
    def active_queues(self) -> list[str]:
        """Queues that kombu itself pops from."""
        return [queue for queue in super().active_queues if queue not in self._receivers]

    # Used by the fetcher.

    @property
    def store(self) -> LeaseStore:
        if self._store is None:
            self._store = self._open_store()
        return self._store

    @property
    def has_loop(self) -> bool:
        return self.connection is not None and self.connection.loop is not None

    def demands(self) -> list[Demand]:
        """By the pool's capacity for each lane, or by kombu's prefetch count."""
        lists = self._lists(self._lease_cycle.consume(len(self._receivers)))
        if not lists:
            return []
        if not self._by_lanes:
            return [Demand(None, lists, self._prefetch(), capacity.max_bytes)]
        lanes: dict[Lane, list[QueueList]] = {}
        for source in lists:
            lanes.setdefault(lane_of(source.priority), []).append(source)
        return [Demand(lane, some, *capacity.bounds(lane)) for lane, some in lanes.items()]

    def has_room(self) -> bool:
        """Whether anything may be fetched now."""
        if self._by_lanes:
            return any(capacity.bounds(lane)[0] for lane in Lane)
        return self._prefetch() > 0

    def connect(self, patience: float) -> Wire:
        pool = self.async_pool
        connection = pool.connection_class(
            **pool.connection_kwargs
            | {
                "socket_timeout": patience,
                "socket_connect_timeout": self.socket_connect_timeout or patience,
                "health_check_interval": 0,
            }
        )
        wire = Wire(connection, patience)
        self.connection.cycle.watch(self.fetcher, wire)
        return wire

    def deliver(self, lease: Lease, message: bytes) -> None:
        """Pass a message to the consumer of its queue."""
        receive = self._receivers.get(lease.queue)
        if receive is None:
            self.leases.release([lease.tag])
            return
        self._lease_cycle.rotate(lease.queue)
        read = self._read(lease, message)
        if read is None:
            return
        try:
            receive(read)
        except KeyError:
            if not self.has_loop:
                raise
            # kombu counts it as a lost connection, and each new one would get the message again.
            logger.exception("A message that its consumer cannot read is a dead letter now")
            self.leases.dead_letter(lease.tag, "unreadable")

    def restore_foreign(self, tags: Sequence[str]) -> None:
        stock_leases.restore(self, self.store, tags)

    def flush(self) -> None:
        """Send the ends of leases now, without an event loop."""
        if not self.has_loop:
            self.leases.flush()

    # Ours.

    @property
    def _by_lanes(self) -> bool:
        return self.has_loop and capacity.tokens is not None

    def _prefetch(self) -> int:
        """Messages that may be fetched now by kombu's count."""
        count = capacity.max_messages if self.has_loop else 1
        if self.qos.prefetch_count:
            held = self.leases.count_owned(self.owner) + self.qos.delivered()
            count = min(count, max(self.qos.prefetch_count - held, 0))
        return count

    def _basic_cancel(self, consumer_tag: str) -> Any:
        queue = self._tag_to_queue.get(consumer_tag)
        answer = super()._basic_cancel(consumer_tag)
        if queue in self._receivers and queue not in self._tag_to_queue.values():
            del self._receivers[queue]
            self._lease_cycle.update(list(self._receivers))
            self.fetcher.unwatch([source.key for source in self._lists([queue])])
        return answer

    def _read(self, lease: Lease, message: bytes) -> Any:
        """Return the message with its lease's tag; None if unreadable: it is a dead letter then."""
        try:
            payload = parse(message)
            payload["properties"]["delivery_tag"] = lease.tag
            return self.Message(payload, channel=self)
        except Exception as error:  # noqa: BLE001 - it would raise the same in every worker
            logger.warning("An unreadable message is a dead letter now: %s", type(error).__name__)
            self.leases.dead_letter(lease.tag, "unreadable")
            self.flush()
            return None

    def _lists(self, queues: Sequence[str]) -> list[QueueList]:
        """Lists in serving order: by priority, then in turn or strictly."""
        in_turn = self.queue_order_strategy == "round_robin"
        lists = []
        for rank, priority in enumerate(self.priority_steps):
            for place, queue in enumerate(queues):
                key = self.global_keyprefix + self._q_for_pri(queue, priority)
                level = rank * len(queues) + (0 if in_turn else place)
                lists.append(QueueList(queue, key, level, priority))
        return lists

    def _open_store(self) -> LeaseStore:
        prefix = self.global_keyprefix
        return open_store(
            broker=broker_of(self),
            client=self._store_client(),
            unacked_key=prefix + self.unacked_key,
            index_key=prefix + self.unacked_index_key,
            dead_letter_key=prefix + self.dead_letter_key,
            key_prefix=prefix,
            separator=self.sep,
            lease_timeout=float(self.lease_timeout),
            visibility_timeout=float(self.visibility_timeout),
        )

    def _store_client(self) -> redis.Redis:
        # Of a pool of its own; for Sentinel, kombu would close the manager with the channel.
        manager = self._sentinel_manager
        pool = self._get_pool()
        self._sentinel_manager = manager
        kwargs = pool.connection_kwargs
        kwargs["socket_timeout"] = kwargs.get("socket_timeout") or 5.0
        return redis.Redis(connection_pool=pool)

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Kombu builds a client for each command, which costs more than the command."""
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._sync_client is None:
            self._sync_client = super()._create_client()
        return self._sync_client

    def _disconnect_pools(self) -> None:
        self._sync_client = None
        super()._disconnect_pools()

    def _on_connection_disconnect(self, connection: Any) -> None:
        super()._on_connection_disconnect(connection)
        if self.connection is not None:
            self.connection.cycle.forget(connection)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)
        except redis.exceptions.OutOfMemoryError:
            # A full server refuses even an existing binding. A new worker must be able to join,
            # since it frees memory.
            self._bind_on_full_server(exchange, routing_key, pattern, queue)

    def _bind_on_full_server(
        self, exchange: str, routing_key: str, pattern: str, queue: str
    ) -> None:
        member = self.sep.join([routing_key or "", pattern or "", queue or ""])
        table = self.keyprefix_queue % (exchange,)
        script, other, arguments = (
            (
                scripts.REBIND,
                self._script_binding_deadlines,
                [member, exchange, self._binding_ttl(queue)],
            )
            if queue in self._expires
            else (
                scripts.BIND,
                self.global_keyprefix + self.keyprefix_binding_permanent % exchange,
                [member],
            )
        )
        with self.conn_or_acquire() as client:
            # kombu's client prefixes keys.
            client.register_script(script.text)(keys=[table, other], args=arguments, client=client)


class SentinelChannel(Channel, stock.SentinelChannel):
    """A channel to the server that Sentinel names as primary."""

    from_transport_options = (*stock.SentinelChannel.from_transport_options, *_OPTIONS)
