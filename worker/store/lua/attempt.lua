-- Counts a delivery of a redelivered job that starts isolated.
-- KEYS    crashes, attempts counted by an old version
-- ARGV    tag of the delivery, or '' to only read the count; seconds that the count is kept
-- Answer  the attempts so far, this one included
-- Repeat  the same answer: a tag counts once.
-- Cost    one job.

local crashes, attempts = KEYS[1], KEYS[2]
local tag, ttl = ARGV[1], ARGV[2]

-- A full server refuses a script only before its first write.
redis.call('EXPIRE', crashes, ttl)
if tag ~= '' then redis.call('SADD', crashes, tag) end
redis.call('EXPIRE', crashes, ttl)
return redis.call('SCARD', crashes) + math.max(tonumber(redis.call('GET', attempts) or 0), 0)
