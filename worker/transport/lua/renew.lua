-- Moves the deadlines of leases.
-- KEYS    index
-- ARGV    seconds from now, then tags
-- Answer  the tags that no longer exist
-- Repeat  the deadlines count from the repeat.
-- Cost    4 commands for all tags.

local index, deadline, tags = KEYS[1], after(ARGV[1]), {unpack(ARGV, 2)}
redis.call('ZREM', index, '')
local missing, renewed = {}, {}
for at, score in ipairs(redis.call('ZMSCORE', index, unpack(tags))) do
  if score then
    renewed[#renewed + 1] = deadline
    renewed[#renewed + 1] = tags[at]
  else
    missing[#missing + 1] = tags[at]
  end
end
if #renewed > 0 then redis.call('ZADD', index, 'XX', unpack(renewed)) end
return missing
