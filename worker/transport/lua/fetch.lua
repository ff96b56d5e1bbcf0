-- Leases messages until `count` of them or `budget` bytes are reached; the last may exceed the
-- budget. Lists of one level are served in turn, levels in order.
-- KEYS    unacked, index, memory of this fetch, lists
-- ARGV    fetch id, seconds to the deadline, count, budget, bytes of a message that do not count,
--         least bytes that do; then for each list: level, priority, end of its entries
-- Answer  {1 if every list was seen empty, {list, message, list, message, …}}; the n-th message, from
--         0, has the tag `timed:priority:fetch:n`, n with four digits
-- Repeat  takes no message; the answer is the same, with nil for a message of an ended lease.
-- Cost    7 commands, and one for each message and each list.

-- Seconds for which a fetch is remembered: longer than a client retries a call.
local MEMORY = 60

local unacked, leases, memory = KEYS[1], KEYS[2], KEYS[3]
local id, timeout = ARGV[1], ARGV[2]
local count, budget = tonumber(ARGV[3]), tonumber(ARGV[4])
local free, least = tonumber(ARGV[5]), tonumber(ARGV[6])
local lists = {unpack(KEYS, 4)}
local levels, kinds, endings = {}, {}, {}
for at = 7, #ARGV, 3 do
  levels[#levels + 1] = ARGV[at]
  kinds[#kinds + 1] = 'timed:' .. ARGV[at + 1] .. ':' .. id .. ':'
  endings[#endings + 1] = ARGV[at + 2]
end

-- A key of another type fails here, before any message is taken.
redis.call('HLEN', unacked)
redis.call('ZCARD', leases)

local taken, spent, came = 0, 0, {}
local entries, index, answer = {}, {}, {}

local function tag_of(list, number)
  return kinds[list] .. string.format('%04d', number)
end

local earlier = redis.call('GET', memory)
if earlier then
  local drained, numbers = string.match(earlier, '^(%d)(.*)')
  for list in string.gmatch(numbers, '%d+') do
    list = tonumber(list)
    local entry = redis.call('HGET', unacked, tag_of(list, taken))
    answer[#answer + 1] = list
    answer[#answer + 1] = entry and string.sub(entry, 2, -#endings[list] - 1)
    taken = taken + 1
  end
  return {tonumber(drained), answer}
end

local function full()
  return taken >= count or spent >= budget
end

local deadline = after(timeout)
local function take(list)
  local message = redis.pcall('RPOP', lists[list])
  -- A key of another type counts as empty.
  if type(message) ~= 'string' then return false end
  local tag, at = tag_of(list, taken), 2 * taken
  entries[at + 1] = tag
  entries[at + 2] = '[' .. message .. endings[list]
  index[at + 1] = deadline
  index[at + 2] = tag
  answer[at + 1] = list
  answer[at + 2] = message
  taken = taken + 1
  came[taken] = list
  spent = spent + math.max(#message - free, least)
  return true
end

local list = 1
while list <= #lists and not full() do
  local level, open = levels[list], {}
  while list <= #lists and levels[list] == level do
    open[#open + 1] = list
    list = list + 1
  end
  while #open > 0 and not full() do
    local left = {}
    for _, one in ipairs(open) do
      if full() or take(one) then left[#left + 1] = one end
    end
    open = left
  end
end
local drained = full() and 0 or 1
if taken == 0 then return {drained, answer} end

local refusal = refused('HSET', unacked, unpack(entries))
  or refused('ZADD', leases, unpack(index))
  or refused('SET', memory, drained .. ' ' .. table.concat(came, ' '), 'EX', MEMORY)
if not refusal then return {drained, answer} end
-- For example, the user lacks the right to one of these commands: put every message back.
for number = taken - 1, 0, -1 do
  local tag = entries[2 * number + 1]
  redis.call('RPUSH', lists[came[number + 1]], answer[2 * number + 2])
  refused('ZREM', leases, tag)
  refused('HDEL', unacked, tag)
end
return refusal
