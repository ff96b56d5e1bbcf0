-- Functions that put messages back into their queues, after common.lua.

-- The message and the queue of an entry of ours.
local function unwrap(entry)
  local message, queue = string.match(entry, '^%[(.*),"","(.-)"%]$')
  if message then return message, cjson.decode('["' .. queue .. '"]')[1] end
end

-- The full name of the list that a tag's message came from.
local function list_of(tag, queue, prefix, separator)
  local priority = string.match(tag, '^%a+:(%-?%d+):')
  return prefix .. queue .. (priority == '0' and '' or separator .. priority)
end

-- Marks one object of a message as kombu does on redelivery. Inside a JSON string every quote has a
-- backslash before it, so `"headers":` is never found in a user's text.
local function insert_mark(message, object)
  local _, at = string.find(message, '"' .. object .. '":%s*{')
  if not at or string.find(message, '^"redelivered": true', at + 1) then return message end
  local comma = string.find(message, '^%s*}', at + 1) and '' or ', '
  return string.sub(message, 1, at) .. '"redelivered": true' .. comma
    .. string.sub(message, at + 1)
end

-- The last refusal of a message by its list.
local refusal

-- Puts a message back, next in line. Returns 1, or 0 if it is missing or its list refuses it, as a key
-- of another type does. A refused message stays leased for a while, and the call continues.
local function put_back(unacked, index, tag, marked, prefix, separator)
  redis.call('ZREM', index, '')
  local entry = redis.call('HGET', unacked, tag)
  local message, queue
  if entry then message, queue = unwrap(entry) end
  if message then
    if marked then message = insert_mark(insert_mark(message, 'delivery_info'), 'headers') end
    local error = refused('RPUSH', list_of(tag, queue, prefix, separator), message)
    if error then
      refusal = error.err
      redis.call('ZADD', index, after(REFUSED), tag)
      return 0
    end
  end
  redis.call('ZREM', index, tag)
  redis.call('HDEL', unacked, tag)
  return message and 1 or 0
end
