-- Removes leased messages.
-- KEYS    unacked, index
-- ARGV    tags
-- Answer  nil
-- Repeat  no effect.
-- Cost    2 commands for all tags.

local unacked, index = KEYS[1], KEYS[2]
redis.call('HDEL', unacked, unpack(ARGV))
redis.call('ZREM', index, unpack(ARGV))
