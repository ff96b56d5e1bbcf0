-- Requeues a dead letter as a job that has never run.
-- KEYS    letters, queue, job, result, attempts, crashes, note of the call, open jobs
-- ARGV    entry, message, record ttl, seconds that the call is remembered, id
-- Answer  1, or 0 if the letter is gone
-- Repeat  the same answer while the call is remembered.
-- Cost    the letters that are newer than this one.

local letters, queue, job, result, attempts, crashes, call, open = unpack(KEYS)
local entry, message, record_ttl, remembered, id = unpack(ARGV)

if redis.call('EXISTS', call) == 1 then return 1 end
if redis.call('LREM', letters, 1, entry) == 0 then return 0 end
redis.call('SET', call, 1, 'EX', remembered)
redis.call('DEL', result, attempts, crashes)
if redis.call('EXISTS', job) == 1 then
  redis.call('HSET', job, 'status', 'queued', 'done', 0)
  redis.call('HDEL', job, 'finished', 'started', 'code', 'message', 'by', 'stored', 'kept_until')
  redis.call('EXPIRE', job, record_ttl)
  redis.call('ZADD', open, clock(), id)
end
redis.call('LPUSH', queue, message)
return 1
