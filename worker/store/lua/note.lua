-- Stores and publishes a state of a job that is no outcome, such as STARTED, unless there is one.
-- KEYS    job, result
-- ARGV    what Celery stores, seconds that it is kept
-- Answer  nothing
-- Repeat  the same value is stored and published again.
-- Cost    one job.

local status = redis.call('HGET', KEYS[1], 'status')
if status and not is_open(status) then return end
if status then redis.call('HSET', KEYS[1], 'status', 'running') end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
redis.call('PUBLISH', KEYS[2], ARGV[1])
