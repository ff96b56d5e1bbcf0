-- Finds open jobs whose messages are nowhere, as after a purge, and forgets those that have ended.
-- If no job is open, resets the counters: workers of older versions can leave something there.
-- KEYS    ledger, open jobs, leased messages or '', lists of the queue
-- ARGV    seconds for which a job must not have been seen, the same if there are leases, jobs looked
--         at; if lists and leases are on another server: 1 if the lists are empty, 1 if no leases are
-- Answer  ids of lost jobs; ids of jobs that are lost unless they are leased
-- Repeat  the same answer, until they are completed.
-- Cost    the jobs looked at; FIELDS of the ledger.

local FIELDS = 100
-- Jobs looked at while messages wait: none of these can be lost, some may have ended.
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
    -- It ended in a worker of an older version, or its record has expired.
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
