-- Keeps an ended job and its result for some seconds at most: its caller has the result.
-- KEYS    job, result, ledger
-- ARGV    seconds, 1 for a success only
-- Answer  nothing
-- Repeat  no effect.
-- Cost    one job.

local job, result, ledger = unpack(KEYS)
local kept, successes = tonumber(ARGV[1]), ARGV[2] == '1'

local status = redis.call('HGET', job, 'status')
if is_open(status) or (successes and status ~= 'succeeded') then return end
unkeep(job, ledger)
for _, key in ipairs({job, result}) do
  if redis.call('TTL', key) > kept then redis.call('EXPIRE', key, kept) end
end
