-- Undoes the acceptance of a job whose message could not be sent.
-- KEYS    job, listing, ledger, open jobs, outbox or ''
-- ARGV    id
-- Answer  nothing
-- Repeat  nothing more happens: the record is gone.
-- Cost    one job.

local changes = {}
settle(changes, select(2, parts(KEYS[1])))
redis.call('DEL', KEYS[1])
write(KEYS[3], changes)
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
if KEYS[5] ~= '' then redis.call('HDEL', KEYS[5], ARGV[1]) end
