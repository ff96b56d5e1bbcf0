-- Writes a worker's heartbeat, with the time of its last progress by this server's clock.
-- KEYS    workers
-- ARGV    node, seconds since its last progress, the other members of its JSON object
-- Answer  nothing
-- Repeat  the same field is written, with a later time.
-- Cost    one worker.

local workers = KEYS[1]
local node, age, members = ARGV[1], tonumber(ARGV[2]), ARGV[3]

-- A full server refuses a script only before its first write. A worker without a heartbeat would
-- count as dead.
redis.call('HDEL', workers, '')
local at = string.format('%.3f', clock() - age)
redis.call('HSET', workers, node, '{"at":' .. at .. ',' .. members)
