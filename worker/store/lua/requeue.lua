-- Queues a dead letter again, as if it had never run.
-- KEYS    letters, queue, job, result, attempts, crashes, note of the call, open jobs
-- ARGV    entry, message, record ttl, seconds that the call is remembered, id
-- Answer  1, or 0 if the letter is gone
-- Repeat  the same answer while the call is remembered.
-- Cost    the letters that are newer than this one.

if redis.call('EXISTS', KEYS[7]) == 1 then return 1 end
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
redis.call('SET', KEYS[7], 1, 'EX', ARGV[4])
redis.call('DEL', KEYS[4], KEYS[5], KEYS[6])
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('HSET', KEYS[3], 'status', 'queued', 'done', 0)
  redis.call('HDEL', KEYS[3], 'finished', 'started', 'code', 'message', 'by', 'stored', 'kept_until')
  redis.call('EXPIRE', KEYS[3], ARGV[3])
  redis.call('ZADD', KEYS[8], clock(), ARGV[5])
end
redis.call('LPUSH', KEYS[2], ARGV[2])
return 1
