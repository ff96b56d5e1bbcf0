"""Lua scripts: what happens to leased messages on the server, each step whole or not at all.

The formats are kombu's (`kombu/transport/redis.py`, 5.7): a queue is a list that producers push on
the left and consumers pop on the right, further priorities are lists named queue, separator,
priority. A leased message lies in the hash `unacked` under its tag, as the JSON array
`[message, exchange, routing key]`, and its tag in the sorted set `unacked_index` by time.

Ours are written with exchange "" and the queue as routing key, which every worker restores to just
the list they came from. Their tags are `kind:priority:fetch:number`, and their score is the
deadline, by the server's clock, after which any worker may restore them:

- `timed:` is a lease, which its holder renews by its own timeout;
- `parked:` is a deferred message, which nobody holds.

Other workers ignore these kinds until the visibility timeout has passed after the deadline. Entries
of stock workers and of earlier versions (`lease:`, `hold:`) have the time of their fetch or last
renewal as score; only RESTORE reads those.

A client repeats a call if the reply is lost, so a repeat of each script is harmless at any time:
fetches have ids, tags are never used twice, and an entry that is gone is left alone. The header of
each script gives its keys, arguments, answer, the effect of a repeat, and a bound of its cost in
Redis commands; each of those takes constant time, or logarithmic time in a sorted set.

On a full server (`maxmemory`, noeviction) Redis refuses commands that may grow, unless the script
has written before: so each script's first write is one that shrinks.

Messages are never decoded and encoded again here: Lua's JSON would turn `[]` into `{}`.
"""

from __future__ import annotations

from kombu.transport import redis as stock

from worker.transport.command import Script

#: Seconds until a message is tried again which its list refused.
REFUSED = 60
#: Kinds of our tags.
LEASE = "timed"
PARKED = "parked"

#: A time from now on, and the error reply of a command that is refused.
_BASE = """
local function refused(...)
  local reply = redis.pcall(...)
  return type(reply) == 'table' and reply.err and reply
end

local function after(seconds)
  local time = redis.call('TIME')
  return string.format('%.6f', time[1] + time[2] / 1000000 + seconds)
end
"""

#: Takes the message and its queue out of an entry of ours; names the list of a tag of ours; and
#: marks a message as kombu does on redelivery. Inside a JSON string every quote has a backslash
#: before it, so `"headers":` is never found in somebody's text. A list may refuse a message, as a
#: key of another type does: then the message stays leased for a while, and the call goes on.
_RETURN = (
    _BASE
    + f"local REFUSED = {REFUSED}\n"
    + """
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

-- The last refusal of a message by its list.
local refusal

local function put_back(tag, marked, prefix, separator)
  redis.call('ZREM', KEYS[2], '')
  local value = redis.call('HGET', KEYS[1], tag)
  local message, queue
  if value then message, queue = unwrap(value) end
  if message then
    if marked then message = insert_mark(insert_mark(message, 'delivery_info'), 'headers') end
    local error = refused('RPUSH', list_of(tag, queue, prefix, separator), message)
    if error then
      refusal = error.err
      redis.call('ZADD', KEYS[2], after(REFUSED), tag)
      return 0
    end
  end
  redis.call('ZREM', KEYS[2], tag)
  redis.call('HDEL', KEYS[1], tag)
  return message and 1 or 0
end
"""
)

#: Seconds for which a fetch is remembered: longer than a client repeats a call.
FETCH_MEMORY = 60

#: Leases messages until `count` of them or `budget` bytes are reached; the last may go beyond.
#: Lists of one level are served in turn, levels in order.
#: KEYS unacked, index, memory of this fetch, lists.
#: ARGV fetch id, seconds to the deadline, count, budget, bytes of a message that do not count,
#: least bytes that do; then for each list: level, priority, end of its entries.
#: Answer: {1 if every list was seen empty, {list, message, list, message, …}}; the n-th message,
#: from 0, has the tag `timed:priority:fetch:n`, n with four digits.
#: Repeat: takes nothing and answers the same, with nil for a message whose lease has ended.
#: Cost: 7 commands, and one for each message and each list.
FETCH = Script(
    _BASE
    + f"local MEMORY = {FETCH_MEMORY}\n"
    + """
-- A key of another type fails here, before anything is taken.
redis.call('HLEN', KEYS[1])
redis.call('ZCARD', KEYS[2])
local count, budget = tonumber(ARGV[3]), tonumber(ARGV[4])
local free, least = tonumber(ARGV[5]), tonumber(ARGV[6])
local taken, spent, came = 0, 0, {}
local entries, index, answer = {}, {}, {}

local levels, kinds, endings = {}, {}, {}
for at = 7, #ARGV, 3 do
  levels[#levels + 1] = ARGV[at]
  kinds[#kinds + 1] = 'timed:' .. ARGV[at + 1] .. ':' .. ARGV[1] .. ':'
  endings[#endings + 1] = ARGV[at + 2]
end

local function tag_of(list, number)
  return kinds[list] .. string.format('%04d', number)
end

local earlier = redis.call('GET', KEYS[3])
if earlier then
  local drained, lists = string.match(earlier, '^(%d)(.*)')
  for list in string.gmatch(lists, '%d+') do
    list = tonumber(list)
    local entry = redis.call('HGET', KEYS[1], tag_of(list, taken))
    answer[#answer + 1] = list
    answer[#answer + 1] = entry and string.sub(entry, 2, -#endings[list] - 1)
    taken = taken + 1
  end
  return {tonumber(drained), answer}
end

local function full()
  return taken >= count or spent >= budget
end

local deadline = after(ARGV[2])
local function take(list)
  local message = redis.pcall('RPOP', KEYS[list + 3])
  -- A key of another type is as good as empty.
  if type(message) ~= 'string' then return false end
  local tag, at = tag_of(list, taken), 2 * taken
  entries[at + 1] = tag
  entries[at + 2] = '[' .. message .. endings[list]
  index[at + 1] = deadline
  index[at + 2] = tag
  answer[at + 1] = list
  answer[at + 2] = message
  taken = taken + 1
  came[taken] = list
  spent = spent + math.max(#message - free, least)
  return true
end

local list, lists = 1, #KEYS - 3
while list <= lists and not full() do
  local level, open = levels[list], {}
  while list <= lists and levels[list] == level do
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
local drained = full() and 0 or 1
if taken == 0 then return {drained, answer} end

local refusal = refused('HSET', KEYS[1], unpack(entries))
  or refused('ZADD', KEYS[2], unpack(index))
  or refused('SET', KEYS[3], drained .. ' ' .. table.concat(came, ' '), 'EX', MEMORY)
if not refusal then return {drained, answer} end
-- As a user without the right to one of these: nothing was taken.
for number = taken - 1, 0, -1 do
  local one, tag = came[number + 1], entries[2 * number + 1]
  redis.call('RPUSH', KEYS[one + 3], answer[2 * number + 2])
  refused('ZREM', KEYS[2], tag)
  refused('HDEL', KEYS[1], tag)
end
return refusal
"""
)

#: Removes leased messages.
#: KEYS unacked, index. ARGV tags. Answer: none.
#: Repeat: no effect. Cost: 2 commands for all tags.
ACK = Script(
    """
redis.call('HDEL', KEYS[1], unpack(ARGV))
redis.call('ZREM', KEYS[2], unpack(ARGV))
"""
)

#: Puts leased messages back, the last one given being next in line.
#: KEYS unacked, index. ARGV '1' to mark them as redelivered, key prefix, separator, then tags.
#: Answer: the last refusal of a list, if any.
#: Repeat: no effect. Cost: 5 commands for each tag.
GIVE_BACK = Script(
    _RETURN
    + """
for at = 4, #ARGV do put_back(ARGV[at], ARGV[1] == '1', ARGV[2], ARGV[3]) end
return refusal
"""
)

#: Parks leased messages: nobody holds them, and RESTORE puts them back when their time has come.
#: KEYS unacked, index. ARGV pairs of tag and seconds. Answer: none.
#: Repeat: no effect; the first call's deadline stands. Cost: 1 command, and 6 for each tag.
DEFER = Script(
    _BASE
    + """
redis.call('ZREM', KEYS[2], '')
for at = 1, #ARGV, 2 do
  local tag = ARGV[at]
  local value = redis.call('HGET', KEYS[1], tag)
  if value then
    local parked = string.gsub(tag, '^%a+', 'parked')
    redis.call('ZADD', KEYS[2], after(ARGV[at + 1]), parked)
    redis.call('HSET', KEYS[1], parked, value)
  end
  redis.call('ZREM', KEYS[2], tag)
  redis.call('HDEL', KEYS[1], tag)
end
"""
)

#: Moves a leased message to a list for people to look at.
#: KEYS unacked, index, dead letters. ARGV tag, reason. Answer: none.
#: Repeat: no effect. Cost: 6 commands.
BURY = Script(
    _RETURN
    + """
redis.call('ZREM', KEYS[2], '')
local value = redis.call('HGET', KEYS[1], ARGV[1])
if value then
  local message, queue = unwrap(value)
  redis.call('LPUSH', KEYS[3], cjson.encode({
    tag = ARGV[1], reason = ARGV[2], queue = queue or '', buried_at = after(0),
    message = message or value}))
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
"""
)

#: Moves the deadlines of leases.
#: KEYS index. ARGV seconds from now, then tags. Answer: the tags that are not there any more.
#: Repeat: the deadlines count from the repeat. Cost: 4 commands for all tags.
RENEW = Script(
    _BASE
    + """
redis.call('ZREM', KEYS[1], '')
local missing, index, deadline = {}, {}, after(ARGV[1])
for at, score in ipairs(redis.call('ZMSCORE', KEYS[1], unpack(ARGV, 2))) do
  if score then
    index[#index + 1] = deadline
    index[#index + 1] = ARGV[at + 1]
  else
    missing[#missing + 1] = ARGV[at + 1]
  end
end
if #index > 0 then redis.call('ZADD', KEYS[1], 'XX', unpack(index)) end
return missing
"""
)

#: Puts messages back whose deadline has passed, the oldest being next in line: those of leases
#: marked as redelivered, deferred ones as they are.
#: Looks at up to `scan` index entries from a cursor on, and restores up to `limit` messages or
#: `bytes` of them. The cursor is a score and the number of entries of that score to pass over.
#: KEYS unacked, index. ARGV key prefix, separator, lease timeout, visibility timeout, the cursor's
#: score and number, scan, limit, bytes.
#: Answer: {leases restored, deferred messages restored, 1 if there is more to look at, tags of
#: stock workers that ran out, which need kombu's routing, the next cursor's score and number, the
#: last refusal of a list, if any}.
#: Repeat: as another sweep, which restores what is due then.
#: Cost: 2 commands, of which one reads `scan` entries beyond those passed over, and 6 for each
#: message restored.
RESTORE = Script(
    _RETURN
    + """
local now, visibility = tonumber(after(0)), tonumber(ARGV[4])
-- Seconds for which an entry outlives its score, by kind; tags of stock workers have none.
local lasts = {timed = 0, parked = 0}
-- Earlier versions: the score is the time of the last renewal, or of a fetch that nobody renews.
lasts.lease, lasts.hold = tonumber(ARGV[3]), visibility

local last, same = ARGV[5], tonumber(ARGV[6])
local scan, limit, bytes = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local rows = redis.call('ZRANGEBYSCORE', KEYS[2], last, now, 'WITHSCORES', 'LIMIT', same, scan)
local due, foreign, more = {}, {}, #rows == 2 * scan
for at = 1, #rows, 2 do
  local tag, score = rows[at], rows[at + 1]
  local kind = string.match(tag, '^(%a+):%-?%d+:')
  local ours = kind and lasts[kind]
  local over = score + (ours or visibility) <= now
  if over and ours then
    if #due >= limit or bytes <= 0 then
      more = true
      break
    end
    due[#due + 1] = tag
    bytes = bytes - redis.call('HSTRLEN', KEYS[1], tag)
  else
    if over then foreign[#foreign + 1] = tag end
    same = score == last and same + 1 or 1
    last = score
  end
end
local leases, deferred = 0, 0
for at = #due, 1, -1 do
  if string.find(due[at], '^parked:') then
    deferred = deferred + put_back(due[at], false, ARGV[1], ARGV[2])
  else
    leases = leases + put_back(due[at], true, ARGV[1], ARGV[2])
  end
end
return {leases, deferred, more and 1 or 0, foreign, last, same, refusal}
"""
)

#: Puts a message of a stock worker back, where kombu's routing says.
#: KEYS unacked, index, lists. ARGV tag, message as it goes into each list.
#: Answer: the last refusal of a list, if any; the message is then tried again after the visibility
#: timeout, if no list took it.
#: Repeat: no effect. Cost: 4 commands, and one for each list.
ROUTE = Script(
    _BASE
    + """
redis.call('ZREM', KEYS[2], '')
local refusal, taken
if redis.call('HGET', KEYS[1], ARGV[1]) then
  for at = 3, #KEYS do
    local error = refused('RPUSH', KEYS[at], ARGV[2])
    if error then refusal = error.err else taken = true end
  end
end
if refusal and not taken then
  redis.call('ZADD', KEYS[2], after(0), ARGV[1])
  return refusal
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
return refusal
"""
)

#: What kombu does to bind a queue to an exchange, after a first write that shrinks: a few bytes for
#: each process that consumes.
#: KEYS bindings, those that stay. ARGV binding. Answer: none.
#: Repeat: no effect. Cost: 3 commands.
BIND = Script(
    """
redis.call('SREM', KEYS[1], '')
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('SADD', KEYS[2], ARGV[1])
"""
)
#: The same for a queue that expires.
#: KEYS bindings, their deadlines. ARGV binding, exchange, milliseconds. Answer: none.
#: Repeat: the deadline counts from the repeat. Cost: 4 commands.
REBIND = Script("redis.call('SREM', KEYS[1], '')\n" + stock.REFRESH_BINDING)
