-- Accepts a job (writes its record, counts it and queues its message), or rejects it with a reason.
-- KEYS    job, listing, ledger, open jobs, outbox or '' (if '', this server gets the message
--         itself), earlier submission or '', leased messages, lists of the interactive, normal and
--         bulk lane, the queue's other lists
-- ARGV    JSON: id, call, owner, queue, model, total, tokens, bytes, lane, later (seconds until the
--         message must be queued, if the caller sends it), capacity (0: unlimited) as in
--         `submissions.QueueCapacity`, listed jobs, record_ttl, shared, fingerprint, remembered (seconds
--         that the fingerprint is kept); the message or ''
-- Answer  verdict, id, level, lane, time of acceptance, unsent message of an earlier job or ''
-- Repeat  the same verdict: the record names the call, and a shared job its callers.
-- Cost    the fields of one job; up to MINUTES_A_CALL of results that have expired.

local job, listing, ledger, open, outbox, known_as, leased = unpack(KEYS, 1, 7)
local lane_lists, lists = {KEYS[8], KEYS[9], KEYS[10]}, {unpack(KEYS, 8)}
local given, message = cjson.decode(ARGV[1]), ARGV[2]
local capacity, id, time, lane = given.capacity, given.id, clock(), given.lane
local tokens, size = given.tokens, #message

-- Whether this server lacks the message of an open job, as after a purge.
local function is_lost(earlier)
  local since = redis.call('ZSCORE', open, earlier)
  return outbox == '' and since and tonumber(since) < time - 5
    and redis.call('HLEN', leased) == 0 and redis.call('EXISTS', unpack(lists)) == 0
end

local function accepted(name, where, created)
  return {'accepted', name, tonumber(redis.call('HGET', ledger, 'tokens') or '0'), tonumber(where),
    created, ''}
end

-- The answer of an earlier submission, if this one repeats or joins it.
local function replay()
  local seen = redis.call('HMGET', known_as, 'id', 'fingerprint')
  if not seen[1] then return end
  local earlier = JOB .. seen[1]
  local held = redis.call('HMGET', earlier, 'status', 'call', 'lane', 'created')
  local waits = is_open(held[1])
  if held[2] == given.call then
    return accepted(seen[1], held[3], held[4])
  end
  if not held[1] or (given.shared and not waits) then return end
  if not given.shared and seen[2] ~= given.fingerprint then
    return {'conflict', seen[1], 0, lane, '', ''}
  end
  if waits and is_lost(seen[1]) then return {'lost', seen[1], 0, lane, '', ''} end
  if given.shared and redis.call('HSETNX', earlier, 'caller:' .. given.call, 1) == 1 then
    redis.call('HINCRBY', earlier, 'callers', 1)
  end
  local unsent = outbox ~= '' and redis.call('HGET', outbox, seen[1])
  return {'replayed', seen[1], 0, lane, '', unsent or ''}
end

-- Tokens or bytes of the owner; 0 for a job without an owner.
local function held(field)
  return given.owner ~= '' and tonumber(redis.call('HGET', ledger, field) or '0') or 0
end
local function share(of)
  return 'share:' .. of .. ':' .. given.owner
end

-- A job larger than a bound is accepted if no other counts against it.
local function is_full(queued, more, bound)
  return bound > 0 and queued > 0 and queued + more > bound
end

-- The verdict and level of a job that exceeds the capacity, else nil.
local function refusal()
  local counted = redis.call('HMGET', ledger, 'tokens', 'size', 'expected', 'kept')
  for at = 1, 4 do counted[at] = math.max(tonumber(counted[at] or '0'), 0) end
  if is_full(counted[1], tokens, capacity.tokens) then return 'full', counted[1] end
  if is_full(counted[2], size, capacity.bytes) then return 'bytes_full', counted[2] end
  if capacity.owner_tokens > 0 then
    local queued = held(share(0)) + held(share(1)) + held(share(2))
    if is_full(queued, tokens, capacity.owner_tokens) then return 'owner_full', queued end
  end
  local bytes = held('size:' .. given.owner)
  if is_full(bytes, size, capacity.owner_bytes) then return 'owner_bytes_full', bytes end
  local results = counted[3] + counted[4]
  if is_full(results, given.bytes, capacity.result_bytes) then return 'results_full', results end
end

local earlier = known_as ~= '' and replay()
if earlier then return earlier end
local known = redis.call('HMGET', job, 'call', 'lane', 'created', 'status', 'stands')
if known[1] == given.call then return accepted(id, known[2], known[3]) end
expire(ledger, time)
local verdict, level = refusal()
if verdict then return {verdict, id, level, lane, '', ''} end

local changes = {}
-- A task that is sent again under its id; as with Celery, only a success stands. A full server
-- refuses a script only before its first write, so the first write must not free memory.
local stands = known[4] == 'succeeded' or known[5]
if known[4] then
  settle(changes, select(2, parts(job)))
  redis.call('HSET', job, 'status', 'queued')
  redis.call('DEL', job)
  if not stands then redis.call('DEL', RESULT .. id) end
end
-- Lists are first in, first out: many tokens of one owner in a lane delay all other owners.
if capacity.lane_share > 0 then
  if lane == 0 and held(share(0)) + tokens > capacity.lane_share then lane = 1 end
  if lane == 1 and held(share(1)) > capacity.lane_share then lane = 2 end
end
local created = seconds(time)
redis.call('HSET', job, 'status', 'queued', 'created', created, 'owner', given.owner,
  'queue', given.queue, 'model', given.model, 'total', given.total, 'lane', lane,
  'tokens', tokens, 'charged', tokens, 'bytes', given.bytes, 'size', size, 'call', given.call)
if stands then redis.call('HSET', job, 'stands', 1) end
add(changes, 'tokens', tokens)
add(changes, 'expected', given.bytes)
add(changes, 'size', size)
if given.owner ~= '' then
  redis.call('HSET', job, 'share', share(lane))
  add(changes, share(lane), tokens)
  add(changes, 'size:' .. given.owner, size)
end
write(ledger, changes)
redis.call('EXPIRE', job, given.record_ttl)
redis.call('ZADD', open, time + given.later, id)
redis.call('ZADD', listing, time, id)
redis.call('EXPIRE', listing, given.record_ttl)
redis.call('ZREMRANGEBYRANK', listing, 0, -1 - given.listed)
if known_as ~= '' then
  redis.call('HSET', known_as, 'id', id, 'fingerprint', given.fingerprint)
  redis.call('EXPIRE', known_as, given.remembered)
end
if given.shared then
  redis.call('HSET', job, 'callers', 1, 'caller:' .. given.call, 1, 'shared', known_as)
end
local list = lane_lists[1 + lane]
if message ~= '' and outbox == '' then
  redis.call('LPUSH', list, message)
elseif message ~= '' then
  redis.call('HSET', outbox, id, seconds(time) .. '\n' .. list .. '\n' .. message)
end
return accepted(id, lane, created)
