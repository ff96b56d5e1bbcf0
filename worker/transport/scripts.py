"""Lua scripts: what happens to leased messages on the server, each step whole or not at all.

The formats are kombu's (`kombu/transport/redis.py`, 5.7): a queue is a list that producers push on
the left and consumers pop on the right, further priorities are lists named queue, separator,
priority. A leased message lies in the hash `unacked` under its tag, as the JSON array
`[message, exchange, routing key]`, and its tag in the sorted set `unacked_index` by time.

Ours are written with exchange "" and the queue as routing key, which every worker restores to just
the list they came from, and have tags `kind:priority:fetch:number`:

- `lease:` is renewed by an event loop and runs out after the lease timeout;
- `hold:` is renewed by nobody and runs out after the visibility timeout, as a stock worker's does.

Times are the server's own. Stock workers write their machine's clock beside them, which matters
only to their own entries, and for those the visibility timeout is an hour.

On a full server (`maxmemory`, noeviction) Redis refuses commands that may grow, unless the script
has written before: so each script's first write is one that shrinks.

Messages are never decoded and encoded again here: Lua's JSON would turn `[]` into `{}`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from kombu.transport import redis as stock

RENEWED = "lease"
HELD = "hold"


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the digest that Redis knows it by."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        # Redis names scripts by SHA-1; nothing is protected by it.
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


@dataclass(frozen=True, slots=True)
class Command:
    """One call of a script."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[str | int | float, ...]

    @property
    def by_digest(self) -> tuple[str | int | float, ...]:
        return "EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args

    @property
    def in_full(self) -> tuple[str | int | float, ...]:
        """For a server that does not know the script, which it does from then on."""
        return "EVAL", self.script.text, len(self.keys), *self.keys, *self.args


_NOW = """
local function now()
  local time = redis.call('TIME')
  return string.format('%d.%06d', tonumber(time[1]), tonumber(time[2]))
end
"""

#: Takes the message and its queue out of an entry of ours; names the list of a tag of ours; and
#: marks a message as kombu does on redelivery. Inside a JSON string every quote has a backslash
#: before it, so `"headers":` is never found in somebody's text.
_RETURN = """
local function unwrap(value)
  local message, queue = string.match(value, '^%[(.*),"","(.-)"%]$')
  if message then return message, cjson.decode('["' .. queue .. '"]')[1] end
end

local function list_of(tag, queue, prefix, separator)
  local priority = string.match(tag, '^%a+:(%-?%d+):')
  return prefix .. queue .. (priority == '0' and '' or separator .. priority)
end

local function insert_mark(message, object)
  local _, at = string.find(message, '"' .. object .. '":%s*{')
  if not at or string.find(message, '^"redelivered": true', at + 1) then return message end
  local comma = string.find(message, '^%s*}', at + 1) and '' or ', '
  return string.sub(message, 1, at) .. '"redelivered": true' .. comma
    .. string.sub(message, at + 1)
end

local function put_back(tag, marked, prefix, separator)
  redis.call('ZREM', KEYS[2], '')
  local value = redis.call('HGET', KEYS[1], tag)
  local message, queue
  if value then message, queue = unwrap(value) end
  if message then
    if marked then message = insert_mark(insert_mark(message, 'delivery_info'), 'headers') end
    redis.call('RPUSH', list_of(tag, queue, prefix, separator), message)
  end
  redis.call('ZREM', KEYS[2], tag)
  redis.call('HDEL', KEYS[1], tag)
  return message and 1 or 0
end
"""

#: Moves messages into the leased set until `count` of them or `budget` bytes are reached; the last
#: may go beyond. Lists of one level are served in turn, levels in order.
#: KEYS unacked, index, lists. ARGV kind, fetch id, count, budget, bytes of a message that do not
#: count, least bytes that do; then for each list: level, priority, end of its entries.
#: Answers {1 if every list was seen empty, {list, message, list, message, …}}; the n-th message,
#: from 0, has the tag `kind:priority:fetch:n`, n with four digits.
FETCH = Script(
    _NOW
    + """
-- A key of another type fails here, before anything is taken.
redis.call('HLEN', KEYS[1])
redis.call('ZCARD', KEYS[2])
local kind, fetch = ARGV[1], ARGV[2]
local count, budget = tonumber(ARGV[3]), tonumber(ARGV[4])
local free, least = tonumber(ARGV[5]), tonumber(ARGV[6])
local time, taken, spent = now(), 0, 0
local entries, index, answer = {}, {}, {}

local function full()
  return taken >= count or spent >= budget
end

local function take(list)
  local message = redis.call('RPOP', KEYS[list + 2])
  if not message then return false end
  local at = 7 + (list - 1) * 3
  local tag = string.format('%s:%s:%s:%04d', kind, ARGV[at + 1], fetch, taken)
  entries[#entries + 1] = tag
  entries[#entries + 1] = '[' .. message .. ARGV[at + 2]
  index[#index + 1] = time
  index[#index + 1] = tag
  answer[#answer + 1] = list
  answer[#answer + 1] = message
  taken = taken + 1
  spent = spent + math.max(#message - free, least)
  return true
end

local list, lists = 1, #KEYS - 2
while list <= lists and not full() do
  local level, open = ARGV[7 + (list - 1) * 3], {}
  while list <= lists and ARGV[7 + (list - 1) * 3] == level do
    open[#open + 1] = list
    list = list + 1
  end
  while #open > 0 and not full() do
    local left = {}
    for at, one in ipairs(open) do
      if full() then
        left[#left + 1] = one
      elseif take(one) then
        left[#left + 1] = one
      end
    end
    open = left
  end
end
if taken > 0 then
  redis.call('HSET', KEYS[1], unpack(entries))
  redis.call('ZADD', KEYS[2], unpack(index))
end
return {full() and 0 or 1, answer}
"""
)

#: KEYS unacked, index. ARGV tags.
ACK = Script(
    """
redis.call('HDEL', KEYS[1], unpack(ARGV))
redis.call('ZREM', KEYS[2], unpack(ARGV))
"""
)

#: Puts leased messages back, the last one given being next in line.
#: KEYS unacked, index. ARGV '1' to mark them as redelivered, key prefix, separator, then tags.
GIVE_BACK = Script(
    _RETURN
    + """
for at = 4, #ARGV do put_back(ARGV[at], ARGV[1] == '1', ARGV[2], ARGV[3]) end
"""
)

#: Moves a leased message to a list for people to look at.
#: KEYS unacked, index, dead letters. ARGV tag, reason.
BURY = Script(
    _NOW
    + _RETURN
    + """
redis.call('ZREM', KEYS[2], '')
local value = redis.call('HGET', KEYS[1], ARGV[1])
if value then
  local message, queue = unwrap(value)
  redis.call('LPUSH', KEYS[3], cjson.encode({
    tag = ARGV[1], reason = ARGV[2], queue = queue or '', buried_at = now(),
    message = message or value}))
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
"""
)

#: Makes leases last from now. KEYS index. ARGV tags. Answers the tags that are not there any more.
RENEW = Script(
    _NOW
    + """
redis.call('ZREM', KEYS[1], '')
local missing, index, time = {}, {}, now()
for at, score in ipairs(redis.call('ZMSCORE', KEYS[1], unpack(ARGV))) do
  if score then
    index[#index + 1] = time
    index[#index + 1] = ARGV[at]
  else
    missing[#missing + 1] = ARGV[at]
  end
end
if #index > 0 then redis.call('ZADD', KEYS[1], 'XX', unpack(index)) end
return missing
"""
)

#: Puts messages back whose lease ran out, marked as redelivered, the oldest being next in line.
#: Looks at up to `scan` index entries after the first `offset` and restores up to `limit`
#: messages or `bytes` of them.
#: KEYS unacked, index. ARGV key prefix, separator, lease timeout, visibility timeout, offset, scan,
#: limit, bytes. Answers {restored, entries passed over, 1 if there is more to look at, tags of
#: stock workers that ran out, which need kombu's routing}.
RESTORE = Script(
    _NOW
    + _RETURN
    + """
local lease_end = now() - tonumber(ARGV[3])
local hold_end = now() - tonumber(ARGV[4])
local scan, limit, bytes = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local rows = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', math.max(lease_end, hold_end),
  'WITHSCORES', 'LIMIT', ARGV[5], scan)
local due, foreign, passed, more = {}, {}, 0, #rows == 2 * scan
for at = 1, #rows, 2 do
  local tag, score = rows[at], tonumber(rows[at + 1])
  local kind = string.match(tag, '^(%a+):%-?%d+:')
  if kind == 'lease' and score <= lease_end or kind == 'hold' and score <= hold_end then
    if #due >= limit or bytes <= 0 then
      more = true
      break
    end
    due[#due + 1] = tag
    bytes = bytes - redis.call('HSTRLEN', KEYS[1], tag)
  else
    passed = passed + 1
    if score <= hold_end and kind ~= 'lease' then foreign[#foreign + 1] = tag end
  end
end
local restored = 0
for at = #due, 1, -1 do restored = restored + put_back(due[at], true, ARGV[1], ARGV[2]) end
return {restored, passed, more and 1 or 0, foreign}
"""
)

#: What kombu does to bind a queue to an exchange, after a first write that shrinks: a few bytes for
#: each process that consumes. Plain text, since kombu's client prefixes keys.
#: KEYS bindings, those that stay. ARGV binding.
BIND = """
redis.call('SREM', KEYS[1], '')
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('SADD', KEYS[2], ARGV[1])
"""
#: The same for a queue that expires.
#: KEYS bindings, their deadlines. ARGV binding, exchange, milliseconds.
REBIND = "redis.call('SREM', KEYS[1], '')\n" + stock.REFRESH_BINDING
