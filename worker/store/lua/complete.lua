-- Completes jobs: stores and publishes their outcomes, closes their records, subtracts them from
-- the counters, ends their leases, and publishes one event. The first outcome of a job stands; a
-- later one only ends its own lease.
-- KEYS    ledger, open jobs, cancelled jobs, leased messages or '', their index or '', outbox or ''
-- ARGV    JSON: queue, ttl (seconds that results are kept), reserve (bytes, 0: none), waiting
--         (whether messages may still wait), lists (of the messages that follow: if this call ends
--         a job, they are sent, or put into the outbox if there is one), groups of jobs that end
--         alike: status, age (seconds since they started, 0: never), code, message, model, and
--         jobs, each an array of id, tag, prompt tokens, texts; then the messages that follow, one
--         for each of the lists; then the outcomes, or '', one for each of the jobs
-- Answer  places, from 0, of jobs that had ended before; places of jobs with a record or outcome
--         that is a key of another type, each with the error: these jobs are not changed
-- Repeat  the same answer, without a second write: a record names the tag that ended it.
-- Cost    the jobs given.

local ledger, open, cancelled, leased, index, outbox = unpack(KEYS)
local given = cjson.decode(ARGV[1])
local queue, ttl, lists = given.queue, given.ttl, given.lists
local time = clock()
local finished, minute, stored = seconds(time), math.floor((time + ttl) / 60), 0
local changes, closed, known, refused, tags, unmarked = {}, {}, {}, {}, {}, {}

-- A shared key of another type fails the call here, before its first write.
redis.call('HEXISTS', ledger, 'tokens')
redis.call('ZCARD', open)
redis.call('ZCARD', cancelled)
if leased ~= '' then
  redis.call('HLEN', leased)
  redis.call('ZCARD', index)
end

local function message_of(number) return ARGV[1 + number] end
local function outcome_of(place) return ARGV[2 + #lists + place] end

-- Lets this script write on a full server, up to `reserve` bytes or a twentieth beyond its
-- `maxmemory`. Redis refuses a script only before its first write; the write here takes no memory.
local function use_reserve()
  local memory = given.reserve > 0 and redis.pcall('INFO', 'memory')
  -- A managed server may not allow INFO.
  if type(memory) ~= 'string' then return end
  local used = tonumber(string.match(memory, 'used_memory:(%d+)') or '0')
  local bound = tonumber(string.match(memory, 'maxmemory:(%d+)') or '0')
  if used < bound + math.max(given.reserve, bound / 20) then redis.call('HDEL', ledger, '') end
end

-- Stores an outcome, replacing an intermediate state. Returns an error if the key has another type.
local function store(key, outcome)
  if outcome == '' then return end
  if not redis.call('SET', key, outcome, 'NX', 'EX', ttl) then
    local length = redis.pcall('STRLEN', key)
    if type(length) == 'table' then return length.err end
    redis.call('SET', key, outcome, 'EX', ttl)
  end
  redis.call('PUBLISH', key, outcome)
end

-- Charges an owner's quota for the tokens beyond the estimate, or refunds them; see `quotas`.
local function charge(owner, estimate, tokens)
  estimate = tonumber(estimate or '')
  if not estimate or tokens == 0 then return end
  local bucket, more = queue .. ':quota:' .. owner, tokens - estimate
  local limit = tonumber(redis.call('HGET', bucket, 'limit2') or '0')
  if limit <= 0 or more == 0 then return end
  redis.call('HINCRBYFLOAT', bucket, '2', -more)
  -- A debt must not be forgotten before it is paid.
  local left = redis.call('PTTL', bucket)
  if more > 0 and left > 0 then
    redis.call('PEXPIRE', bucket, left + math.ceil(more * 60000 / limit))
  end
end

-- Fields of all records of a group.
local function shared_fields(group)
  local fields = {'status', group.status, 'finished', finished, 'tokens', '', 'size', ''}
  if group.age > 0 then
    fields[9], fields[10] = 'started', seconds(time - group.age)
  end
  if group.code ~= '' then
    local last = #fields
    fields[last + 1], fields[last + 2] = 'code', group.code
    fields[last + 3], fields[last + 4] = 'message', group.message
  end
  return fields
end

-- Closes a record, or creates it for a job of a stock producer.
local function close(ended, outcome, group, fields, is_new)
  local id, tag, prompt_tokens, texts = unpack(ended)
  local last = #fields
  local function note(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if tag ~= '' then note('by', tag) end
  if group.status == 'succeeded' then
    note('prompt_tokens', prompt_tokens)
    note('done', texts)
    if is_new then note('total', texts) end
  end
  if is_new then
    note('queue', queue)
    note('model', group.model)
  end
  if outcome ~= '' then
    note('stored', #outcome)
    note('kept_until', minute)
    stored = stored + #outcome
  end
  redis.call('HSET', JOB .. id, unpack(fields))
  for field = #fields, last + 1, -1 do fields[field] = nil end
  closed[#closed + 1] = id
  if given.waiting then
    redis.call('ZADD', cancelled, time, id)
    redis.call('EXPIRE', cancelled, 604800)
  end
end

-- Completes a job of a group. Returns whether this is its first outcome, and an error.
local function complete(ended, outcome, group, fields)
  local id, tag, prompt_tokens = unpack(ended)
  local job = JOB .. id
  local held = redis.pcall('HMGET', job, unpack(PARTS))
  if held.err then return false, held.err end
  local status, tokens, bytes, share, size, owner, by, charged, stands = unpack(held)
  if status and not is_open(status) then
    -- Counters that a worker of an older version did not know of.
    if size and size ~= '' then
      settle(changes, tokens, bytes, share, size, owner)
      redis.call('HSET', job, 'tokens', '', 'size', '')
    end
    if status == 'cancelled' and by ~= tag then unmarked[#unmarked + 1] = id end
    return by and by == tag
  end
  -- The success of an earlier run stands, unless it has expired.
  stands = stands and redis.call('EXISTS', RESULT .. id) == 1
  local failure = not stands and store(RESULT .. id, outcome)
  if failure then return false, failure end
  settle(changes, tokens, bytes, share, size, owner)
  if stands then
    redis.call('HSET', job, 'status', 'succeeded', 'finished', finished, 'tokens', '', 'size', '')
    closed[#closed + 1] = id
  elseif status or outcome ~= '' or #lists > 0 then
    close(ended, outcome, group, fields, not status)
    if owner and owner ~= '' then charge(owner, charged, prompt_tokens) end
  end
  redis.call('EXPIRE', job, ttl)
  return not stands
end

local function send()
  for number, list in ipairs(lists) do
    local message = message_of(number)
    if outbox == '' then
      redis.call('LPUSH', list, message)
    else
      local name = closed[1] .. ':' .. number
      redis.call('HSET', outbox, name, finished .. '\n' .. list .. '\n' .. message)
    end
  end
end

-- Removes members in parts that fit Lua's stack.
local function remove(command, key, members)
  for at = 1, #members, 1000 do
    redis.call(command, key, unpack(members, at, math.min(at + 999, #members)))
  end
end

use_reserve()
local place, ids = 0, {}
for _, group in ipairs(given.groups) do
  local fields = shared_fields(group)
  for _, ended in ipairs(group.jobs) do
    local id, tag = unpack(ended)
    local first, failure = complete(ended, outcome_of(place), group, fields)
    if failure then
      refused[#refused + 1] = {place, failure}
    else
      if not first then known[#known + 1] = place end
      ids[#ids + 1] = id
      if leased ~= '' and tag ~= '' then tags[#tags + 1] = tag end
    end
    place = place + 1
  end
end
write(ledger, changes)
keep(ledger, stored, minute, time)
remove('ZREM', open, ids)
remove('ZREM', cancelled, unmarked)
if leased ~= '' then
  remove('HDEL', leased, tags)
  remove('ZREM', index, tags)
end
expire(ledger, time)
if #closed > 0 then
  send()
  redis.call('PUBLISH', EVENTS, cjson.encode({ended = closed}))
end
return {known, refused}
