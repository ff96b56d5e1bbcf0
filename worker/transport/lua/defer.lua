-- Parks leased messages: no worker holds them, and restore.lua puts them back at their deadline.
-- KEYS    unacked, index
-- ARGV    pairs of tag and seconds
-- Answer  nil
-- Repeat  no effect; the first call's deadline stands.
-- Cost    1 command, and 6 for each tag.

local unacked, index = KEYS[1], KEYS[2]
redis.call('ZREM', index, '')
for at = 1, #ARGV, 2 do
  local tag, seconds = ARGV[at], ARGV[at + 1]
  local entry = redis.call('HGET', unacked, tag)
  if entry then
    local parked = string.gsub(tag, '^%a+', 'parked')
    redis.call('ZADD', index, after(seconds), parked)
    redis.call('HSET', unacked, parked, entry)
  end
  redis.call('ZREM', index, tag)
  redis.call('HDEL', unacked, tag)
end
