-- Functions that the scripts share. This text precedes each script.
--
-- The ledger is a hash with the counters of a queue:
--   tokens, size, expected   of open jobs: estimated tokens, bytes of their messages, estimated
--                            bytes of their results
--   share:L:O, size:O        tokens of owner O in lane L, bytes of owner O, for jobs with an owner
--   kept, kept:M             bytes of stored results, in total and by the minute M of expiry
--   kept_from                the first minute that may have a field kept:M
-- A record holds its parts in the counters, so each part is subtracted once.

local JOB, RESULT, EVENTS = 'embedq:job:', 'celery-task-meta-', 'embedq:events'
-- Minutes of expired results that one call subtracts from the counters.
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

-- Collects an amount to add to a field of a ledger; `write` adds all of them.
local function add(changes, field, amount)
  if amount ~= 0 then changes[field] = (changes[field] or 0) + amount end
end

-- Adds the collected amounts. Counters by owner are removed at zero, so the ledger holds only
-- owners with open jobs.
local function write(ledger, changes)
  for field, amount in pairs(changes) do
    if redis.call('HINCRBY', ledger, field, amount) <= 0 and string.find(field, ':', 1, true) then
      redis.call('HDEL', ledger, field)
    end
  end
end

-- Fields of a record: the status, then the arguments of `settle` in their order, then the fields
-- that only `complete` uses.
local PARTS = {'status', 'tokens', 'bytes', 'share', 'size', 'owner', 'by', 'charged', 'stands'}
local function parts(job)
  return unpack(redis.call('HMGET', job, unpack(PARTS)))
end

-- Subtracts the parts of a record from the counters. The caller removes them from the record.
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

-- Subtracts expired results from the counters. The first write must be one that a full server
-- refuses: it refuses a script only before its first write.
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

-- Counts bytes of results that expire in the minute given.
local function keep(ledger, bytes, minute, time)
  if bytes == 0 then return end
  redis.call('HINCRBY', ledger, 'kept', bytes)
  redis.call('HINCRBY', ledger, 'kept:' .. minute, bytes)
  redis.call('HSETNX', ledger, 'kept_from', math.floor(time / 60))
end

-- Subtracts the bytes of a job's result from the counters, once, if it has not expired.
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
