-- Stores and publishes an intermediate state of a job, such as STARTED, unless it has ended.
-- KEYS    job, result
-- ARGV    the state in Celery's format, seconds that it is kept
-- Answer  nothing
-- Repeat  the same value is stored and published again.
-- Cost    one job.

local job, result = KEYS[1], KEYS[2]
local stored, ttl = ARGV[1], ARGV[2]

local status = redis.call('HGET', job, 'status')
if status and not is_open(status) then return end
if status then redis.call('HSET', job, 'status', 'running') end
redis.call('SET', result, stored, 'EX', ttl)
redis.call('PUBLISH', result, stored)
