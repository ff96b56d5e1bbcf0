-- Leaves an ended job and its result no longer than some seconds: its caller has the result.
-- KEYS    job, result, ledger
-- ARGV    seconds, 1 for a success only
-- Answer  nothing
-- Repeat  nothing more happens.
-- Cost    one job.

local status = redis.call('HGET', KEYS[1], 'status')
if is_open(status) or (ARGV[2] == '1' and status ~= 'succeeded') then return end
unkeep(KEYS[1], KEYS[3])
for at = 1, 2 do
  if redis.call('TTL', KEYS[at]) > tonumber(ARGV[1]) then
    redis.call('EXPIRE', KEYS[at], ARGV[1])
  end
end
