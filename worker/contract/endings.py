"""The Lua script that ends jobs, many at once, whole or not at all."""

from __future__ import annotations

from worker.contract import keys
from worker.contract.scripts import ENDED

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
#: bytes that a full server may go beyond its bound or '', then for each job: id, lease tag or '',
#: meta or '', status, prompt tokens, texts, code, message, time started. Answers how many records
#: it closed.
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

-- As `settle` does for one job.
local function settle(job, tokens, bytes, share)
  settled.tokens = settled.tokens + tonumber(tokens)
  settled.expected = settled.expected + tonumber(bytes or '0')
  if share then settled[share] = (settled[share] or 0) + tonumber(tokens) end
  redis.call('HDEL', job, 'tokens', 'bytes', 'share')
end

local function close(job, at)
  local fields = {{'status', ARGV[at + 3], 'finished', now, 'stored', #ARGV[at + 2]}}
  local function note(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if ARGV[at + 8] ~= '' then note('started', ARGV[at + 8]) end
  if ARGV[at + 3] == 'succeeded' then
    note('prompt_tokens', ARGV[at + 4])
    note('done', ARGV[at + 5])
    note('total', ARGV[at + 5])
  end
  if ARGV[at + 6] ~= '' then
    note('code', ARGV[at + 6])
    note('message', ARGV[at + 7])
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

for at = 6, #ARGV, 9 do
  local id, tag, meta = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local job = '{keys.JOB_PREFIX}' .. id
  local first = meta == '' or store(prefix .. id, meta)
  local held = redis.call('HMGET', job, 'status', 'tokens', 'bytes', 'share')
  if held[1] == 'queued' or held[1] == 'running' then
    if held[2] then settle(job, held[2], held[3], held[4]) end
    -- Where another outcome was first, the record is read with that one.
    if first then close(job, at) end
    redis.call('EXPIRE', job, ttl)
  end
  if tag ~= '' then tags[#tags + 1] = tag end
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
