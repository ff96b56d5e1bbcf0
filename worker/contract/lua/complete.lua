-- Completes jobs: stores and publishes their outcomes, closes their records, takes them off the
-- counters, ends their leases, and gives one notice. The first outcome of a job stands; a later one
-- only ends its own lease.
-- KEYS    ledger, open jobs, cancelled jobs, leased messages or '', their index or '', outbox or ''
-- ARGV    queue, seconds that results are kept, reserve or '', 1 if messages may still wait; how many
--         messages are to follow, and for each its list and itself, which are sent, or kept in the
--         outbox if there is one, if a job ends by this call; then for jobs that end alike: how many, status, seconds since they started or '', code, message,
--         model; and for each of them: id, tag, outcome or '', prompt tokens, texts
-- Answer  places, from 0, of jobs that had ended before
-- Repeat  the same answer, and nothing is written twice: a record names the tag that ended it.
-- Cost    the jobs given.
--
-- A key of another type, or one that the user may not read, fails the call before its first write, so
-- that the caller can find the job at fault by asking for fewer.

local ledger, open, cancelled, leased, index, outbox = unpack(KEYS)
local queue, ttl, reserve, waiting = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1'
local time = clock()
local minute, stored = math.floor((time + ttl) / 60), 0
local follow = tonumber(ARGV[5])
local changes, closed, known, tags, unmarked = {}, {}, {}, {}, {}

-- The jobs of the call, each with its record and the state of its stored outcome.
local function read()
  redis.call('HEXISTS', ledger, 'tokens')
  redis.call('ZCARD', open)
  redis.call('ZCARD', cancelled)
  if leased ~= '' then
    redis.call('HLEN', leased)
    redis.call('ZCARD', index)
  end
  local jobs, at = {}, 6 + 2 * follow
  while at < #ARGV do
    local how = {status = ARGV[at + 1], started = ARGV[at + 2], code = ARGV[at + 3],
      message = ARGV[at + 4], model = ARGV[at + 5]}
    local past = at + 6 + 5 * ARGV[at]
    for one = at + 6, past - 1, 5 do
      local id, outcome = ARGV[one], ARGV[one + 2]
      local head = redis.pcall('GETRANGE', RESULT .. id, 0, 48)
      if type(head) == 'table' then
        -- A record can be closed without its outcome.
        if outcome ~= '' then return nil, head end
        head = ''
      end
      jobs[#jobs + 1] = {id = id, tag = ARGV[one + 1], outcome = outcome, key = RESULT .. id,
        tokens = tonumber(ARGV[one + 3]), texts = ARGV[one + 4], how = how, job = JOB .. id,
        part = parts(JOB .. id), earlier = status_of(head)}
    end
    at = past
  end
  return jobs
end

-- Lets this script write on a full server, while that uses no more than its `maxmemory` and `reserve`
-- bytes or a twentieth beyond. Redis refuses a script only before its first write, and the one here
-- takes nothing.
local function use_reserve()
  local memory = reserve ~= '' and redis.pcall('INFO', 'memory')
  -- A managed server may keep INFO to itself.
  if type(memory) ~= 'string' then return end
  local used = tonumber(string.match(memory, 'used_memory:(%d+)') or '0')
  local bound = tonumber(string.match(memory, 'maxmemory:(%d+)') or '0')
  if used < bound + math.max(tonumber(reserve), bound / 20) then redis.call('HDEL', ledger, '') end
end

-- Charges an owner's quota of tokens for the difference to the estimate; see `quota`.
local function charge(part, tokens)
  local estimate = tonumber(part.charged or '')
  if not part.owner or part.owner == '' or not estimate or tokens == 0 then return end
  local bucket, more = queue .. ':quota:' .. part.owner, tokens - estimate
  local limit = tonumber(redis.call('HGET', bucket, 'limit2') or '0')
  if limit <= 0 or more == 0 then return end
  redis.call('HINCRBYFLOAT', bucket, '2', -more)
  -- A debt must not be forgotten before it is paid.
  local left = redis.call('PTTL', bucket)
  if more > 0 and left > 0 then
    redis.call('PEXPIRE', bucket, left + math.ceil(more * 60000 / limit))
  end
end

local function close(one)
  local how, outcome = one.how, one.outcome
  local fields = {'status', how.status, 'finished', seconds(time), 'by', one.tag, 'queue', queue,
    'tokens', '', 'size', ''}
  local function note(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if how.started ~= '' then note('started', seconds(time - tonumber(how.started))) end
  if how.model ~= '' then note('model', how.model) end
  if how.status == 'succeeded' then
    note('prompt_tokens', one.tokens)
    note('done', one.texts)
    note('total', one.texts)
  end
  if how.code ~= '' then
    note('code', how.code)
    note('message', how.message)
  end
  if outcome ~= '' then
    note('stored', #outcome)
    note('kept_until', minute)
    stored = stored + #outcome
  end
  redis.call('HSET', one.job, unpack(fields))
  charge(one.part, one.tokens)
  closed[#closed + 1] = one.id
  if waiting then
    redis.call('ZADD', cancelled, time, one.id)
    redis.call('EXPIRE', cancelled, 604800)
  end
end

-- An open job, or one without a record. Returns whether this is its first outcome.
local function finish(one)
  if one.earlier then
    -- The record is behind its outcome, which a worker of an older version stored.
    if one.part.status then
      redis.call('HSET', one.job, 'status', one.earlier, 'finished', seconds(time), 'tokens', '',
        'size', '')
      closed[#closed + 1] = one.id
    end
  else
    if one.outcome ~= '' then
      redis.call('SET', one.key, one.outcome, 'EX', ttl)
      redis.call('PUBLISH', one.key, one.outcome)
    end
    -- A job of a producer without a record gets one, if its result is wanted.
    if one.part.status or one.outcome ~= '' or follow > 0 then close(one) end
  end
  redis.call('EXPIRE', one.job, ttl)
  return not one.earlier
end

local function complete(one)
  local part = one.part
  settle(part, changes)
  if not part.status or is_open(part.status) then return finish(one) end
  -- Counters that a worker of an older version did not know of.
  if part.size and part.size ~= '' then redis.call('HSET', one.job, 'tokens', '', 'size', '') end
  local first = one.tag ~= '' and part.by == one.tag
  return first
end

-- In parts that Lua's stack holds.
local function remove(command, key, members)
  for at = 1, #members, 1000 do
    redis.call(command, key, unpack(members, at, math.min(at + 999, #members)))
  end
end

local function send()
  for at = 1, follow do
    local list, message = ARGV[4 + 2 * at], ARGV[5 + 2 * at]
    if outbox == '' then
      redis.call('LPUSH', list, message)
    else
      local name = closed[1] .. ':' .. at
      redis.call('HSET', outbox, name, seconds(time) .. '\n' .. list .. '\n' .. message)
    end
  end
end

local jobs, failure = read()
if failure then return failure end
use_reserve()
local ids = {}
for place, one in ipairs(jobs) do
  -- A job may be there twice: the second time it has ended.
  if ids[one.id] then one.part, one.earlier = parts(one.job), one.how.status end
  if not complete(one) then
    known[#known + 1] = place - 1
    if (one.earlier or one.part.status) == 'cancelled' then unmarked[#unmarked + 1] = one.id end
  end
  ids[one.id], ids[#ids + 1] = true, one.id
  if leased ~= '' and one.tag ~= '' then tags[#tags + 1] = one.tag end
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
return known
