-- Writes a worker's heartbeat, with the time of its last progress by this server's clock.
-- KEYS    workers
-- ARGV    node, seconds since its last progress, the other members of its JSON object
-- Answer  nothing
-- Repeat  the same field is written, with a later time.
-- Cost    one worker.

-- A full server refuses a script only before its first write, and a worker that could not write
-- would be taken for dead.
redis.call('HDEL', KEYS[1], '')
local at = string.format('%.3f', clock() - tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], ARGV[1], '{"at":' .. at .. ',' .. ARGV[3])
