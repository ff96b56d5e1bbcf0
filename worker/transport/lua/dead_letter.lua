-- Moves a leased message to a list of dead letters.
-- KEYS    unacked, index, dead letters
-- ARGV    tag, reason
-- Answer  nil
-- Repeat  no effect.
-- Cost    6 commands.

local unacked, index, letters = KEYS[1], KEYS[2], KEYS[3]
local tag, reason = ARGV[1], ARGV[2]
redis.call('ZREM', index, '')
local entry = redis.call('HGET', unacked, tag)
if entry then
  local message, queue = unwrap(entry)
  redis.call('LPUSH', letters, cjson.encode({
    tag = tag, reason = reason, queue = queue or '', buried_at = after(0),
    message = message or entry}))
end
redis.call('ZREM', index, tag)
redis.call('HDEL', unacked, tag)
