"""Open jobs without a message: another program has purged the queue without notice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import redis

from worker.contract import keys
from worker.contract.lanes import lists_of
from worker.store import scripts

#: Age in seconds from which an open job can be lost, and jobs of one step.
_SEEN_WITHIN = 5
SWEPT = 1000
#: The same age while there are leases, which may belong to other queues. Then all leases are
#: checked, a page at a time, unless there are too many.
_LEASED_WITHIN = 60
_MOST_LEASED = 20_000
_LEASED_PAGE = 100


class LostJobs:
    """Finds lost jobs. Belongs to one thread; raises redis.RedisError."""

    def __init__(self, client: redis.Redis, broker: redis.Redis, queue: str) -> None:
        """`broker`: the server of the messages, which may be `client` itself."""
        self._broker = broker
        self._is_apart = broker is not client
        self._keys = [keys.ledger(queue), keys.open_jobs(queue)]
        self._lists = lists_of(queue)
        self._sweep = client.register_script(scripts.SWEEP)
        self._leased = client.register_script(scripts.LEASED)
        #: Jobs that the last call found neither waiting nor leased.
        self._missing: set[str] = set()

    def find(self) -> list[str]:
        """Ids of lost jobs, `SWEPT` at most.

        A job is lost if no message waits in its queue and it is not leased.
        """
        given, state = [*self._keys, keys.LEASED, *self._lists], [0, 0]
        if self._is_apart:
            # Before the script runs: jobs accepted from now on are too young to be lost.
            with self._broker.pipeline() as pipe:
                pipe.exists(*self._lists)
                pipe.hlen(keys.LEASED)
                state = [int(not found) for found in pipe.execute()]
            given = [*self._keys, ""]
        answer = self._sweep(keys=given, args=[_SEEN_WITHIN, _LEASED_WITHIN, SWEPT, *state])
        lost, missing = ([raw.decode() for raw in ids] for ids in cast("list[list[bytes]]", answer))
        return lost + self._not_leased(missing)

    def _not_leased(self, job_ids: Sequence[str]) -> list[str]:
        """Jobs without a lease, both now and at the last call: a message can move meanwhile."""
        leased = self._leased_ids() if job_ids else set()
        missing = set() if leased is None else set(job_ids) - leased
        self._missing, before = missing, self._missing
        return sorted(missing & before)

    def _leased_ids(self) -> set[str] | None:
        """Ids of all leased tasks; None if there are too many leases to check."""
        ids, cursor = set[str](), 0
        if self._broker.hlen(keys.LEASED) > _MOST_LEASED:
            return None
        while True:
            arguments = [cursor, _LEASED_PAGE]
            answer = self._leased(keys=[keys.LEASED], args=arguments, client=self._broker)
            following, page = cast("tuple[bytes, list[bytes]]", answer)
            ids.update(raw.decode(errors="replace") for raw in page)
            cursor = int(following)
            if not cursor:
                return ids
