-- Undoes the acceptance of a job after a failure to send its message.
-- KEYS    job, listing, ledger, open jobs, outbox or ''
-- ARGV    id
-- Answer  nothing
-- Repeat  no effect: the record is gone.
-- Cost    one job.

local job, listing, ledger, open, outbox = unpack(KEYS)
local id = ARGV[1]

local changes = {}
settle(changes, select(2, parts(job)))
redis.call('DEL', job)
write(ledger, changes)
redis.call('ZREM', listing, id)
redis.call('ZREM', open, id)
if outbox ~= '' then redis.call('HDEL', outbox, id) end
