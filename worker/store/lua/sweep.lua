-- Finds open jobs without a message, as after a purge, and removes ended jobs from the open ones.
-- If no job is open, resets the counters: workers of older versions can leave counts there.
-- KEYS    ledger, open jobs, leased messages or '', lists of the queue
-- ARGV    age in seconds from which a job can be lost, the same if there are leases, jobs checked;
--         if lists and leases are on another server: 1 if no list has messages, 1 without leases
-- Answer  ids of lost jobs; ids of jobs that are lost unless they are leased
-- Repeat  the same answer, until they are completed.
-- Cost    the jobs checked; FIELDS of the ledger.

local FIELDS = 100
-- Jobs checked while messages wait: these cannot be lost, but may have ended.
local FEW = 20
local ledger, open, leased = KEYS[1], KEYS[2], KEYS[3]
local seen_within, leased_within, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local empty, free = ARGV[4] == '1', ARGV[5] == '1'
if leased ~= '' then
  empty = redis.call('EXISTS', unpack(KEYS, 4)) == 0
  free = redis.call('HLEN', leased) == 0
end
local time, changes, lost, missing = clock(), {}, {}, {}
local looked = empty and most or FEW
local rows = redis.call('ZRANGE', open, 0, looked - 1, 'WITHSCORES')
for at = 1, #rows, 2 do
  local id, age = rows[at], time - tonumber(rows[at + 1])
  local status, tokens, bytes, share, size, owner = parts(JOB .. id)
  if not is_open(status) then
    -- A worker of an older version completed it, or its record has expired.
    settle(changes, tokens, bytes, share, size, owner)
    redis.call('HDEL', JOB .. id, 'tokens', 'bytes', 'share', 'size')
    redis.call('ZREM', open, id)
  elseif empty and free and age > seen_within then
    lost[#lost + 1] = id
  elseif empty and not free and age > leased_within then
    missing[#missing + 1] = id
  end
end
write(ledger, changes)
if empty and free and redis.call('EXISTS', open) == 0 then
  redis.call('HDEL', ledger, 'tokens', 'size', 'expected')
  local fields = redis.call('HSCAN', ledger, 0, 'COUNT', FIELDS)[2]
  for at = 1, math.min(#fields, 2 * FIELDS), 2 do
    if string.find(fields[at], '^share:') or string.find(fields[at], '^size:') then
      redis.call('HDEL', ledger, fields[at])
    end
  end
end
return {lost, missing}
