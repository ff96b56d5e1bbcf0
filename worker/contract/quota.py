"""What a key may spend in a minute: two token buckets a key in Redis, exact across processes.

A bucket (https://en.wikipedia.org/wiki/Token_bucket) holds a minute's allowance and fills evenly.
One script takes from both or from neither, by the server's clock.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import redis

from worker.contract import keys

#: Seconds in which an empty bucket fills.
WINDOW = 60

#: KEYS bucket. ARGV limit of requests, limit of tokens (0: none), tokens wanted. Answers 1 or 0,
#: then for requests and tokens: what is left, milliseconds until full; milliseconds until enough.
#: What costs more than a whole bucket needs a full one, and leaves a debt: none is had for nothing.
_TAKE = f"""
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local limits, costs = {{tonumber(ARGV[1]), tonumber(ARGV[2])}}, {{1, tonumber(ARGV[3])}}
local held = redis.call('HMGET', KEYS[1], '1', '2', 'at')
local left, wait = {{}}, 0
for at = 1, 2 do
  local limit, rate = limits[at], limits[at] / {WINDOW * 1000}
  local passed = math.max(0, now - tonumber(held[3] or now))
  left[at] = math.min(limit, tonumber(held[at] or limit) + passed * rate)
  local needed = math.min(costs[at], limit)
  if limit > 0 and left[at] < needed then
    wait = math.max(wait, math.ceil((needed - left[at]) / rate))
  end
end
local answer, longest = {{wait == 0 and 1 or 0}}, 0
for at = 1, 2 do
  if wait == 0 then left[at] = left[at] - costs[at] end
  local missing = limits[at] - left[at]
  local reset = limits[at] > 0 and math.ceil(missing * {WINDOW * 1000} / limits[at]) or 0
  longest = math.max(longest, reset)
  answer[#answer + 1] = math.max(0, math.floor(left[at]))
  answer[#answer + 1] = reset
end
redis.call('HSET', KEYS[1], '1', tostring(left[1]), '2', tostring(left[2]), 'at', now)
redis.call('PEXPIRE', KEYS[1], longest + {WINDOW * 1000})
answer[#answer + 1] = wait
return answer
"""


class Bucket(NamedTuple):
    """One allowance: `limit` a minute, `left` of it, `reset` seconds until it is full again."""

    limit: int
    left: int
    reset: float


class Taken(NamedTuple):
    """Whether it was granted, what is left, and else the seconds until it would be."""

    granted: bool
    requests: Bucket | None
    tokens: Bucket | None
    retry_after: float


class Quotas:
    """The buckets of all keys on one Redis. Safe to share between threads."""

    def __init__(self, client: redis.Redis) -> None:
        self._script = client.register_script(_TAKE)

    def take(
        self, owner: str, tokens: int, *, requests_limit: int | None, tokens_limit: int | None
    ) -> Taken:
        """Take one request and so many tokens of an owner's minute. Raises redis.RedisError."""
        answer = self._script(
            keys=[keys.quota(owner)], args=[requests_limit or 0, tokens_limit or 0, tokens]
        )
        granted, r_left, r_reset, t_left, t_reset, wait = cast("list[int]", answer)
        return Taken(
            bool(granted),
            Bucket(requests_limit, r_left, r_reset / 1000) if requests_limit else None,
            Bucket(tokens_limit, t_left, t_reset / 1000) if tokens_limit else None,
            wait / 1000,
        )
