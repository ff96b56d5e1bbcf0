-- Puts a message of a stock worker back, into the lists that kombu's routing gives.
-- KEYS    unacked, index, lists
-- ARGV    tag, message as it goes into each list
-- Answer  the last refusal of a list, if any; if no list took the message, it is tried again after
--         the visibility timeout
-- Repeat  no effect.
-- Cost    4 commands, and one for each list.

local unacked, index = KEYS[1], KEYS[2]
local tag, message = ARGV[1], ARGV[2]
redis.call('ZREM', index, '')
local refusal, taken
if redis.call('HGET', unacked, tag) then
  for at = 3, #KEYS do
    local error = refused('RPUSH', KEYS[at], message)
    if error then refusal = error.err else taken = true end
  end
end
if refusal and not taken then
  redis.call('ZADD', index, after(0), tag)
  return refusal
end
redis.call('ZREM', index, tag)
redis.call('HDEL', unacked, tag)
return refusal
