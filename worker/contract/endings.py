"""How jobs end: many at once, by one Lua script, whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import redis

from worker.contract import keys
from worker.contract.jobs import Status
from worker.contract.scripts import ENDED

#: Bytes beyond its `maxmemory` that outcomes may take on a full server, more where that is large,
#: and jobs that end so at a time. Leases take some of it, too: one is larger than its message was.
RESERVE = 8 * 2**20
_ENDED_FROM_RESERVE = 16


class Ending(NamedTuple):
    """How a job ended.

    `meta` is the outcome to store, empty where Celery stored it already or nobody wants it; `tag`
    is the lease that ends with it, empty where there is none.
    """

    id: str
    status: Status
    tag: str = ""
    meta: bytes = b""
    prompt_tokens: int = 0
    texts: int = 0
    code: str = ""
    message: str = ""
    started: float = 0.0


#: What jobs of one batch mostly have in common.
_HOW = attrgetter("status", "started", "code", "message")


class Endings:
    """Ends jobs of one queue on one Redis database. Safe to share between threads."""

    def __init__(self, client: redis.Redis, ledger: str, result_ttl: int) -> None:
        self._ledger = ledger
        self._result_ttl = result_ttl
        self._finish = client.register_script(FINISH)

    def end(self, endings: Sequence[Ending], lease_keys: Sequence[str]) -> None:
        """End jobs, each once: a job that has an outcome keeps it and only loses its lease.

        `lease_keys` name the hash and the sorted set that hold leases. A server that is full takes
        a few at a time, as far as `RESERVE` goes: else one that is full of messages would never
        have room for the outcomes that make it. May be repeated after an error. Raises
        redis.RedisError, of which OutOfMemoryError says that the reserve is used up, too.
        """
        try:
            self._end(endings, lease_keys, reserve="")
        except redis.OutOfMemoryError:
            for at in range(0, len(endings), _ENDED_FROM_RESERVE):
                self._end(endings[at : at + _ENDED_FROM_RESERVE], lease_keys, reserve=RESERVE)

    def _end(
        self, endings: Sequence[Ending], lease_keys: Sequence[str], *, reserve: int | str
    ) -> None:
        arguments: list[Any] = [time.time(), self._result_ttl, keys.EVENTS, keys.RESULT_PREFIX]
        arguments.append(reserve)
        for how, alike in groupby(endings, _HOW):
            some = list(alike)
            arguments += (len(some), *how)
            for end in some:
                arguments += (end.id, end.tag, end.meta, end.prompt_tokens, end.texts)
        self._finish(keys=[self._ledger, *lease_keys], args=arguments)


#: Lets a script write on a full server while that uses no more than its `maxmemory` and `reserve`
#: bytes or a twentieth beyond. Redis refuses a script only before its first write, and the one here
#: takes nothing. With '' in place of a number there is no reserve.
_RESERVE = """
local function use_reserve(ledger, reserve)
  local memory = reserve ~= '' and redis.pcall('INFO', 'memory')
  -- A managed server may keep INFO to itself.
  if type(memory) ~= 'string' then return end
  local used = tonumber(string.match(memory, 'used_memory:(%d+)') or '0')
  local bound = tonumber(string.match(memory, 'maxmemory:(%d+)') or '0')
  if used < bound + math.max(tonumber(reserve), bound / 20) then redis.call('HDEL', ledger, '') end
end
"""

#: Ends many jobs at once: outcome stored and published, record closed, lease removed, one notice.
#: The first outcome of a job stands; a second one only removes its lease.
#: KEYS ledger, leased messages, leased index. ARGV now, result ttl, events channel, result prefix,
#: bytes that a full server may go beyond its bound or '', then for jobs that end alike: how many,
#: status, time started or 0, code, message; and for each of them: id, lease tag or '', meta or '',
#: prompt tokens, texts. Answers how many records it closed.
FINISH = f"""
{ENDED}
{_RESERVE}
local ledger, now, ttl, prefix = KEYS[1], ARGV[1], ARGV[2], ARGV[4]
use_reserve(ledger, ARGV[5])
local closed, stored = {{}}, 0
-- What goes off the ledger, by its fields, and the leases that end: all of it told at the end.
local settled, tags = {{tokens = 0, expected = 0}}, {{}}

local function store(key, meta)
  if not redis.call('SET', key, meta, 'NX', 'EX', ttl) then
    if ended(key) then return false end
    redis.call('SET', key, meta, 'EX', ttl)
  end
  redis.call('PUBLISH', key, meta)
  stored = stored + #meta
  return true
end

-- As `settle` does for one job, whose record is still to lose them.
local function settle(tokens, bytes, share)
  if not tokens or tokens == '' then return end
  settled.tokens = settled.tokens + tonumber(tokens)
  settled.expected = settled.expected + tonumber(bytes or '0')
  if share then settled[share] = (settled[share] or 0) + tonumber(tokens) end
end

local function close(job, how, at)
  local fields = {{'status', ARGV[how + 1], 'finished', now, 'stored', #ARGV[at + 2]}}
  fields[7], fields[8] = 'tokens', ''
  local function note(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if tonumber(ARGV[how + 2]) > 0 then note('started', ARGV[how + 2]) end
  if ARGV[how + 1] == 'succeeded' then
    note('prompt_tokens', ARGV[at + 3])
    note('done', ARGV[at + 4])
    note('total', ARGV[at + 4])
  end
  if ARGV[how + 3] ~= '' then
    note('code', ARGV[how + 3])
    note('message', ARGV[how + 4])
  end
  redis.call('HSET', job, unpack(fields))
  closed[#closed + 1] = ARGV[at]
end

-- Whole minutes of results that have all expired.
local function forget(before)
  for _, field in ipairs(redis.call('HKEYS', ledger)) do
    local minute = string.match(field, '^stored:(%d+)$')
    if minute and tonumber(minute) < before then redis.call('HDEL', ledger, field) end
  end
end

local function finish(how, at)
  local id, tag, meta = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local job = '{keys.JOB_PREFIX}' .. id
  local first = meta == '' or store(prefix .. id, meta)
  local held = redis.call('HMGET', job, 'status', 'tokens', 'bytes', 'share')
  if held[1] == 'queued' or held[1] == 'running' then
    settle(held[2], held[3], held[4])
    if first then
      close(job, how, at)
    else
      -- The record is read with the outcome that was there before.
      redis.call('HDEL', job, 'tokens')
    end
    redis.call('EXPIRE', job, ttl)
  end
  if tag ~= '' then tags[#tags + 1] = tag end
end

local how = 6
while how < #ARGV do
  local past = how + 5 + 5 * ARGV[how]
  for at = how + 5, past - 1, 5 do finish(how, at) end
  how = past
end
for field, amount in pairs(settled) do
  if amount ~= 0 and redis.call('HINCRBY', ledger, field, -amount) <= 0
    and string.find(field, '^share:') then
    redis.call('HDEL', ledger, field)
  end
end
-- In parts that Lua's stack holds.
for at = 1, #tags, 1000 do
  local last = math.min(at + 999, #tags)
  redis.call('HDEL', KEYS[2], unpack(tags, at, last))
  redis.call('ZREM', KEYS[3], unpack(tags, at, last))
end
if stored > 0 then
  local minute = math.floor(tonumber(now) / 60)
  if redis.call('HINCRBY', ledger, 'stored:' .. minute, stored) == stored then
    forget(math.floor((tonumber(now) - tonumber(ttl)) / 60))
  end
end
if #closed > 0 then redis.call('PUBLISH', ARGV[3], cjson.encode({{ended = closed}})) end
return #closed
"""
