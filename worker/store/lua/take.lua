-- Takes one request and some tokens from an owner's two buckets, or takes from neither.
-- KEYS    bucket, note of the call
-- ARGV    limit of requests, limit of tokens (0: none), tokens wanted, milliseconds of a window
-- Answer  1 or 0; for requests and for tokens: the rest, milliseconds until full; milliseconds
--         until there is enough
-- Repeat  the same answer for 10 seconds, without taking again.
-- Cost    one owner.
--
-- A request that costs more than a whole bucket needs a full bucket, and leaves a debt.

local bucket, call = KEYS[1], KEYS[2]
local limits, costs = {tonumber(ARGV[1]), tonumber(ARGV[2])}, {1, tonumber(ARGV[3])}
local window = tonumber(ARGV[4])

local earlier = redis.call('GET', call)
if earlier then return cjson.decode(earlier) end
local now = math.floor(clock() * 1000)
local held = redis.call('HMGET', bucket, '1', '2', 'at')
local left, wait = {}, 0
for at = 1, 2 do
  local limit, rate = limits[at], limits[at] / window
  local passed = math.max(0, now - tonumber(held[3] or now))
  left[at] = math.min(limit, tonumber(held[at] or limit) + passed * rate)
  local needed = math.min(costs[at], limit)
  if limit > 0 and left[at] < needed then
    wait = math.max(wait, math.ceil((needed - left[at]) / rate))
  end
end
local answer, longest = {wait == 0 and 1 or 0}, 0
for at = 1, 2 do
  if wait == 0 then left[at] = left[at] - costs[at] end
  local missing = limits[at] - left[at]
  local reset = limits[at] > 0 and math.ceil(missing * window / limits[at]) or 0
  longest = math.max(longest, reset)
  answer[#answer + 1] = math.max(0, math.floor(left[at]))
  answer[#answer + 1] = reset
end
redis.call('HSET', bucket, '1', tostring(left[1]), '2', tostring(left[2]), 'at', now,
  'limit2', limits[2])
redis.call('PEXPIRE', bucket, longest + window)
answer[#answer + 1] = wait
redis.call('SET', call, cjson.encode(answer), 'EX', 10)
return answer
