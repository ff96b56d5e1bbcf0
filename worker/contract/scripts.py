"""Lua scripts: the steps of a job's life that must happen whole or not at all.

Keys that depend on a job's id are built inside the scripts where a call covers many jobs, so they
need one server (or Sentinel), not Redis Cluster, as kombu does.
"""

from __future__ import annotations

from worker.contract import keys

#: The state of a result key that holds an outcome, else false; RETRY and STARTED are none. It
#: stands first in the value, so the vectors are never parsed.
ENDED = """
local function ended(key)
  local state = string.match(redis.call('GETRANGE', key, 0, 48), '"status": ?"(%u+)"')
  return (state == 'SUCCESS' or state == 'FAILURE' or state == 'REVOKED') and state
end
"""

#: Whether a record is there and waits for its outcome.
_OPEN = """
local function open(job)
  local status = redis.call('HGET', job, 'status')
  return status == 'queued' or status == 'running'
end
"""

#: Takes a job's estimates off the ledger, once: the record loses them with it. Where its tokens are
#: '' that was done when the job ended.
_SETTLE = """
local function settle(job, ledger)
  local held = redis.call('HMGET', job, 'tokens', 'bytes', 'share')
  if held[1] and held[1] ~= '' then
    redis.call('HINCRBY', ledger, 'tokens', -tonumber(held[1]))
    redis.call('HINCRBY', ledger, 'expected', -tonumber(held[2] or '0'))
    if held[3] and redis.call('HINCRBY', ledger, held[3], -tonumber(held[1])) <= 0 then
      redis.call('HDEL', ledger, held[3])
    end
    redis.call('HDEL', job, 'tokens', 'bytes', 'share')
  end
end
"""

#: Takes the bytes of a job's result off the ledger, once.
_UNSTORE = """
local function unstore(job, ledger)
  local held = redis.call('HMGET', job, 'stored', 'finished')
  if held[1] and held[2] then
    local minute = math.floor(tonumber(held[2]) / 60)
    redis.call('HINCRBY', ledger, 'stored:' .. minute, -tonumber(held[1]))
    redis.call('HDEL', job, 'stored')
  end
end
"""

#: KEYS job, listing, ledger, earlier submission or '', lists of the lanes. ARGV id, now, owner,
#: model, total, tokens, bytes, token bound, byte bound, record ttl, listed jobs, fingerprint, ttl
#: of the earlier submission, result ttl, message or '', 1 where the job is shared, lane, an owner's
#: share of a lane in tokens or 0, an owner's bound in tokens or 0. Answers {verdict, id, level},
#: and the lane of a job accepted. May be repeated after an error; a shared job then may count
#: somebody twice, and is kept longer.
ACCEPT = f"""
{ENDED}
{_OPEN}
{_SETTLE}
local job, listing, ledger, once = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, now, shared = ARGV[1], tonumber(ARGV[2]), ARGV[16] == '1'
local lane, bound = tonumber(ARGV[17]), tonumber(ARGV[18])
local tokens, bytes = tonumber(ARGV[6]), tonumber(ARGV[7])
local max_tokens, max_bytes = tonumber(ARGV[8]), tonumber(ARGV[9])

-- The ledger's count of what an owner has waiting in a lane, where owners are told apart.
local function share(of)
  return ARGV[3] ~= '' and 'share:' .. of .. ':' .. ARGV[3]
end
local function held(of)
  return tonumber(share(of) and redis.call('HGET', ledger, share(of)) or '0')
end

if once ~= '' then
  local seen = redis.call('HMGET', once, 'id', 'fingerprint')
  local earlier = seen[1] and '{keys.JOB_PREFIX}' .. seen[1]
  if seen[1] == id then return {{'accepted', id, 0, lane}} end
  if shared then
    if earlier and open(earlier) and not ended('{keys.RESULT_PREFIX}' .. seen[1]) then
      redis.call('HINCRBY', earlier, 'callers', 1)
      return {{'replayed', seen[1], 0}}
    end
  elseif earlier and redis.call('EXISTS', earlier) == 1 then
    return {{seen[2] == ARGV[12] and 'replayed' or 'conflict', seen[1], 0}}
  end
end
-- The client sends a call again whose answer it lost; the time tells it from another submission.
if redis.call('HGET', job, 'created') == ARGV[2] then return {{'accepted', id, 0, lane}} end
if max_tokens > 0 then
  local queued = tonumber(redis.call('HGET', ledger, 'tokens') or '0')
  if queued > 0 and queued + tokens > max_tokens then return {{'full', id, queued}} end
end
local owner_bound = tonumber(ARGV[19])
if owner_bound > 0 then
  local queued = held(0) + held(1) + held(2)
  if queued > 0 and queued + tokens > owner_bound then return {{'owner_full', id, queued}} end
end
if max_bytes > 0 then
  local held, oldest = 0, math.floor((now - tonumber(ARGV[14])) / 60)
  local fields = redis.call('HGETALL', ledger)
  for at = 1, #fields, 2 do
    local minute = string.match(fields[at], '^stored:(%d+)$')
    if fields[at] == 'expected' or (minute and tonumber(minute) >= oldest) then
      held = held + tonumber(fields[at + 1])
    end
  end
  if held > 0 and held + bytes > max_bytes then return {{'results_full', id, held}} end
end
if redis.call('EXISTS', job) == 1 then
  -- A task sent again under its old id. A full server refuses a script only before its first write.
  settle(job, ledger)
  redis.call('DEL', job)
end
-- Lists are first in, first out: so much of one owner's in a lane holds everybody else up.
if bound > 0 then
  if lane == 0 and held(0) + tokens > bound then lane = 1 end
  if lane == 1 and held(1) > bound then lane = 2 end
end
redis.call('HSET', job, 'status', 'queued', 'created', ARGV[2], 'owner', ARGV[3],
  'model', ARGV[4], 'total', ARGV[5], 'tokens', tokens, 'bytes', bytes)
if share(lane) then
  redis.call('HSET', job, 'share', share(lane))
  redis.call('HINCRBY', ledger, share(lane), tokens)
end
redis.call('EXPIRE', job, ARGV[10])
redis.call('ZADD', listing, now, id)
redis.call('EXPIRE', listing, ARGV[10])
redis.call('ZREMRANGEBYRANK', listing, 0, -1 - tonumber(ARGV[11]))
local level = redis.call('HINCRBY', ledger, 'tokens', tokens)
redis.call('HINCRBY', ledger, 'expected', bytes)
if once ~= '' then
  redis.call('HSET', once, 'id', id, 'fingerprint', ARGV[12])
  redis.call('EXPIRE', once, ARGV[13])
end
if shared then redis.call('HSET', job, 'callers', 1, 'shared', once) end
if ARGV[15] ~= '' then redis.call('LPUSH', KEYS[5 + lane], ARGV[15]) end
return {{'accepted', id, level, lane}}
"""

#: KEYS job, listing, ledger. ARGV id. Undoes an acceptance whose message was not sent.
WITHDRAW = f"""
{_SETTLE}
settle(KEYS[1], KEYS[3])
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
"""

#: KEYS job, result, ledger. ARGV seconds, 1 for a success only. Leaves an ended job and its result
#: no longer than that, and takes its bytes off the ledger, once.
RELEASE = f"""
{ENDED}
{_OPEN}
{_UNSTORE}
local state = ended(KEYS[2])
if (open(KEYS[1]) or ARGV[2] == '1') and not state then return end
if ARGV[2] == '1' and state ~= 'SUCCESS' then return end
unstore(KEYS[1], KEYS[3])
for at = 1, 2 do
  if redis.call('TTL', KEYS[at]) > tonumber(ARGV[1]) then
    redis.call('EXPIRE', KEYS[at], ARGV[1])
  end
end
"""

#: KEYS job, result, ledger, listing. ARGV id. One of those who share a job goes; with the last one
#: go the job and its result, if it has ended. Answers 1 where it has not and nobody is left.
_LEAVE = f"""
{ENDED}
{_OPEN}
{_SETTLE}
{_UNSTORE}
local function leave()
  local job = KEYS[1]
  local once = redis.call('HGET', job, 'shared')
  if once and redis.call('HINCRBY', job, 'callers', -1) > 0 then return 0 end
  if once and redis.call('HGET', once, 'id') == ARGV[1] then redis.call('DEL', once) end
  if open(job) and not ended(KEYS[2]) then return 1 end
  settle(job, KEYS[3])
  unstore(job, KEYS[3])
  redis.call('DEL', job, KEYS[2])
  redis.call('ZREM', KEYS[4], ARGV[1])
  return 0
end
"""
LEAVE = f"""
{_LEAVE}
return leave()
"""

#: The same keys and argument. Answers the job's record, field by field, and its outcome or false;
#: where it has ended, who asks leaves with them.
COLLECT = f"""
{_LEAVE}
local record, outcome = redis.call('HGETALL', KEYS[1]), redis.call('GET', KEYS[2])
if not open(KEYS[1]) or ended(KEYS[2]) then leave() end
return {{record, outcome}}
"""

#: KEYS job, result, ledger. ARGV id, now, meta, ttl, events channel. Answers 1 if it was this call.
CANCEL = f"""
{ENDED}
{_OPEN}
{_SETTLE}
local job, result = KEYS[1], KEYS[2]
settle(job, KEYS[3])
local known = redis.call('EXISTS', job) == 1
-- One whose result nobody wanted has ended by its record alone.
if ended(result) or (known and not open(job)) then return 0 end
redis.call('SET', result, ARGV[3], 'EX', ARGV[4])
redis.call('PUBLISH', result, ARGV[3])
if known then
  redis.call('HSET', job, 'status', 'cancelled', 'finished', ARGV[2])
  redis.call('EXPIRE', job, ARGV[4])
end
redis.call('PUBLISH', ARGV[5], cjson.encode({{ended = {{ARGV[1]}}}}))
return 1
"""

#: Notes how far running jobs are and tells who listens; those that have ended stay as they are.
#: ARGV record ttl, events channel, result prefix, then for each job: id, time started, texts done,
#: texts in all. A job without a record, of a stock producer, gets one.
PROGRESS = f"""
{ENDED}
{_OPEN}
local told, any = {{}}, false
for at = 4, #ARGV, 4 do
  local id, done, total = ARGV[at], ARGV[at + 2], ARGV[at + 3]
  local job = '{keys.JOB_PREFIX}' .. id
  if (open(job) or redis.call('EXISTS', job) == 0) and not ended(ARGV[3] .. id) then
    redis.call('HSET', job, 'status', 'running', 'started', ARGV[at + 1], 'done', done,
      'total', total)
    redis.call('EXPIRE', job, ARGV[1])
    told[id], any = {{tonumber(done), tonumber(total)}}, true
  end
end
if any then redis.call('PUBLISH', ARGV[2], cjson.encode({{progress = told}})) end
"""

#: Queues a dead letter again, as if it had never run. KEYS letters, queue, job, result, attempts,
#: crashes. ARGV entry, message, record ttl. Answers 1, or 0 where the letter is gone.
REQUEUE = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
redis.call('DEL', unpack(KEYS, 4))
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('HSET', KEYS[3], 'status', 'queued', 'done', 0)
  redis.call('HDEL', KEYS[3], 'finished', 'started', 'code', 'message')
  redis.call('EXPIRE', KEYS[3], ARGV[3])
end
redis.call('LPUSH', KEYS[2], ARGV[2])
return 1
"""

#: Puts the ledger right where nothing waits and nothing runs: messages can vanish without an end,
#: by `celery purge` or with their record. KEYS ledger, leased messages, lists of the queue.
RECONCILE = """
if redis.call('HLEN', KEYS[2]) > 0 or redis.call('EXISTS', unpack(KEYS, 3)) > 0 then return end
redis.call('HDEL', KEYS[1], 'tokens', 'expected')
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.find(field, '^share:') then redis.call('HDEL', KEYS[1], field) end
end
"""
