-- Stores vectors of texts within a bound and evicts the least recently used ones.
-- KEYS    vectors by digest, digests by their last use
-- ARGV    bound in bytes, most entries to remove, seconds to live, number of digests used, these
--         digests, then digest and vector of each new entry
-- Answer  nothing
-- Repeat  the same entries are written, and up to as many further old ones are removed.
-- Cost    the digests and entries given, and those removed.

local cache, last_uses = KEYS[1], KEYS[2]
local bound, removals = tonumber(ARGV[1]), tonumber(ARGV[2])
local ttl, used = ARGV[3], tonumber(ARGV[4])
local now, first_new = clock(), 5 + used

-- Bytes of an entry in both keys, including the allocator's rounding and a growing table.
local function cost(length)
  return math.ceil(length * 1.25) + 320
end

for at = 5, first_new - 1 do
  redis.call('ZADD', last_uses, 'XX', now, ARGV[at])
end
local bytes, wanted = tonumber(redis.call('HGET', cache, 'bytes') or '0'), 0
for at = first_new, #ARGV, 2 do
  wanted = wanted + cost(#ARGV[at + 1])
end
while bytes + wanted > bound and removals > 0 do
  local oldest = redis.call('ZPOPMIN', last_uses)
  if #oldest == 0 then
    -- Only one of the two keys was removed.
    redis.call('DEL', cache)
    bytes = 0
    break
  end
  local length = redis.call('HSTRLEN', cache, oldest[1])
  if length > 0 then
    redis.call('HDEL', cache, oldest[1])
    bytes = bytes - cost(length)
  end
  removals = removals - 1
end
if bytes + wanted <= bound then
  for at = first_new, #ARGV, 2 do
    local held = redis.call('HSTRLEN', cache, ARGV[at])
    if held > 0 then bytes = bytes - cost(held) end
    redis.call('HSET', cache, ARGV[at], ARGV[at + 1])
    redis.call('ZADD', last_uses, now, ARGV[at])
    bytes = bytes + cost(#ARGV[at + 1])
  end
end
redis.call('HSET', cache, 'bytes', string.format('%d', bytes))
redis.call('EXPIRE', cache, ttl)
redis.call('EXPIRE', last_uses, ttl)
