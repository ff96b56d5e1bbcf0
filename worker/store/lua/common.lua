-- Functions that the scripts of a job's life share. This text stands before each of them.
--
-- The ledger is a hash with the counters of a queue:
--   tokens, size, expected   of jobs that have not ended: estimated tokens, bytes of their messages,
--                            estimated bytes of their results
--   share:L:O, size:O        tokens of owner O in lane L, bytes of owner O, if owners are told apart
--   kept, kept:M             bytes of stored results, in total and by the minute M in which they expire
--   kept_from                the first minute that may have a field kept:M
-- A record holds the parts that it has in the counters, so each part is taken off once.

local JOB, RESULT, EVENTS = 'embedq:job:', 'celery-task-meta-', 'embedq:events'
-- Minutes of expired results that one call takes off the counters.
local MINUTES_A_CALL = 120

local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1e6
end

local function seconds(time)
  return string.format('%.6f', time)
end

local function is_open(status)
  return status == 'queued' or status == 'running'
end

-- What is to be added to fields of a ledger, collected over a call.
local function add(changes, field, amount)
  if amount ~= 0 then changes[field] = (changes[field] or 0) + amount end
end

-- Counters by owner go when they reach zero, so the ledger holds only owners with open jobs.
local function write(ledger, changes)
  for field, amount in pairs(changes) do
    if redis.call('HINCRBY', ledger, field, amount) <= 0 and string.find(field, ':', 1, true) then
      redis.call('HDEL', ledger, field)
    end
  end
end

-- The fields of a record by which `settle` takes it off the counters, in the order of its arguments;
-- before them the status, after them what only `complete` uses.
local PARTS = {'status', 'tokens', 'bytes', 'share', 'size', 'owner', 'by', 'charged', 'stands'}
local function parts(job)
  return unpack(redis.call('HMGET', job, unpack(PARTS)))
end

-- Takes the parts of a record off the counters. The caller removes them from the record.
local function settle(changes, tokens, bytes, share, size, owner)
  tokens = tonumber(tokens or '')
  if tokens then
    add(changes, 'tokens', -tokens)
    add(changes, 'expected', -(tonumber(bytes or '') or 0))
    if share then add(changes, share, -tokens) end
  end
  size = tonumber(size or '')
  if size then
    add(changes, 'size', -size)
    if owner and owner ~= '' then add(changes, 'size:' .. owner, -size) end
  end
end

-- Takes the results that have expired off the counters. The first write is one that a full server
-- refuses, since it refuses a script only before that.
local function expire(ledger, time)
  local this = math.floor(time / 60)
  local from = tonumber(redis.call('HGET', ledger, 'kept_from') or this)
  if from >= this then return end
  local last = math.min(this, from + MINUTES_A_CALL)
  local gone, fields = 0, {}
  for minute = from, last - 1 do fields[#fields + 1] = 'kept:' .. minute end
  for _, bytes in ipairs(redis.call('HMGET', ledger, unpack(fields))) do
    gone = gone + (tonumber(bytes or '') or 0)
  end
  redis.call('HSET', ledger, 'kept_from', last)
  if gone ~= 0 then redis.call('HINCRBY', ledger, 'kept', -gone) end
  redis.call('HDEL', ledger, unpack(fields))
end

-- Counts bytes of results that expire in a minute.
local function keep(ledger, bytes, minute, time)
  if bytes == 0 then return end
  redis.call('HINCRBY', ledger, 'kept', bytes)
  redis.call('HINCRBY', ledger, 'kept:' .. minute, bytes)
  redis.call('HSETNX', ledger, 'kept_from', math.floor(time / 60))
end

-- Takes the bytes of a job's result off the counters, once, if it has not expired.
local function unkeep(job, ledger)
  local held = redis.call('HMGET', job, 'stored', 'kept_until')
  if held[1] and held[2] then
    local field = 'kept:' .. held[2]
    if redis.call('HEXISTS', ledger, field) == 1 then
      redis.call('HINCRBY', ledger, field, -tonumber(held[1]))
      redis.call('HINCRBY', ledger, 'kept', -tonumber(held[1]))
    end
    redis.call('HDEL', job, 'stored', 'kept_until')
  end
end
