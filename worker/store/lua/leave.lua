-- Removes one caller of a shared job. With the last one, the result of an ended job expires.
-- KEYS    job, result, ledger, listing
-- ARGV    id, caller, seconds that job and result are kept for a repeat, 1 to leave only a job that
--         has ended and to answer with it
-- Answer  1 if the job has not ended and no caller is left, else 0; with the fourth argument the
--         record, field by field, and the outcome or false
-- Repeat  the same answer, for the seconds given: a caller leaves once.
-- Cost    one job.

local job, result, ledger, listing = unpack(KEYS)
local id, caller, kept, collect = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local record = collect and redis.call('HGETALL', job)
local outcome = collect and redis.call('GET', result)

local function leave()
  local status, shared = unpack(redis.call('HMGET', job, 'status', 'shared'))
  local waits = is_open(status)
  if collect and waits then return 0 end
  if shared and redis.call('HDEL', job, 'caller:' .. caller) == 1 then
    redis.call('HINCRBY', job, 'callers', -1)
  end
  if shared and tonumber(redis.call('HGET', job, 'callers') or '0') > 0 then return 0 end
  if shared and redis.call('HGET', shared, 'id') == id then redis.call('DEL', shared) end
  if waits then return 1 end
  unkeep(job, ledger)
  redis.call('EXPIRE', job, kept)
  redis.call('EXPIRE', result, kept)
  redis.call('ZREM', listing, id)
  return 0
end

local answer = leave()
return collect and {record, outcome} or answer
