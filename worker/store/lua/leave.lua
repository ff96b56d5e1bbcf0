-- One caller of a shared job leaves it. With the last one the result goes, if the job has ended.
-- KEYS    job, result, ledger, listing
-- ARGV    id, caller, seconds that job and result are kept for a repeat, 1 to leave only a job that
--         has ended and to answer with it
-- Answer  1 if the job has not ended and no caller is left, else 0; with the fourth argument the
--         record, field by field, and the outcome or false
-- Repeat  the same answer, for the seconds given: a caller leaves once.
-- Cost    one job.

local job, result = KEYS[1], KEYS[2]
local collect = ARGV[4] == '1'
local record = collect and redis.call('HGETALL', job)
local outcome = collect and redis.call('GET', result)

local function leave()
  local held = redis.call('HMGET', job, 'status', 'shared')
  local once = held[2]
  local waits = is_open(held[1])
  if collect and waits then return 0 end
  if once and redis.call('HDEL', job, 'caller:' .. ARGV[2]) == 1 then
    redis.call('HINCRBY', job, 'callers', -1)
  end
  if once and tonumber(redis.call('HGET', job, 'callers') or '0') > 0 then return 0 end
  if once and redis.call('HGET', once, 'id') == ARGV[1] then redis.call('DEL', once) end
  if waits then return 1 end
  unkeep(job, KEYS[3])
  redis.call('EXPIRE', job, ARGV[3])
  redis.call('EXPIRE', result, ARGV[3])
  redis.call('ZREM', KEYS[4], ARGV[1])
  return 0
end

local answer = leave()
return collect and {record, outcome} or answer
