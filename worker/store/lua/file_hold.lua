-- Counts the bytes of a file before they are written, or corrects their number, within bounds.
-- KEYS    expiry, held, used
-- ARGV    id, owner, bytes, time of removal, bounds of the owner's files and bytes and of all files
--         and bytes (0: none)
-- Answer  0, or 1 to 4 for the bound that is reached
-- Repeat  the same answer, and the counters do not change.
-- Cost    one file.

local expiry, held, used = unpack(KEYS)
local id, owner, bytes, due = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local bounds = {unpack(ARGV, 5)}

local before = redis.call('HGET', held, id)
local more = {before and 0 or 1, bytes - tonumber(before and string.match(before, '^%d+') or 0)}
local names = {'files:' .. owner, 'bytes:' .. owner, 'files', 'bytes'}
local sums = redis.call('HMGET', used, unpack(names))
for at = 1, 4 do
  local bound, plus = tonumber(bounds[at]), more[(at - 1) % 2 + 1]
  if bound > 0 and plus > 0 and tonumber(sums[at] or 0) + plus > bound then return at end
end
redis.call('HSET', held, id, string.format('%.0f:%s', bytes, owner))
for at = 1, 4 do redis.call('HINCRBY', used, names[at], more[(at - 1) % 2 + 1]) end
redis.call('ZADD', expiry, due, id)
return 0
