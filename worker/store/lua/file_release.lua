-- Subtracts a removed file from the counters.
-- KEYS    expiry, held, used
-- ARGV    id
-- Answer  nothing
-- Repeat  no effect.
-- Cost    one file.

local expiry, held, used = unpack(KEYS)
local id = ARGV[1]

redis.call('ZREM', expiry, id)
local before = redis.call('HGET', held, id)
if not before then return end
redis.call('HDEL', held, id)
local bytes, owner = string.match(before, '^(%d+):(.*)$')
local less = {'files:' .. owner, 1, 'bytes:' .. owner, bytes, 'files', 1, 'bytes', bytes}
for at = 1, 8, 2 do
  if redis.call('HINCRBY', used, less[at], '-' .. less[at + 1]) <= 0 then
    redis.call('HDEL', used, less[at])
  end
end
