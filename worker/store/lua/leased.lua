-- Returns the task ids of some leased messages.
-- KEYS    leased messages
-- ARGV    cursor, messages of a page
-- Answer  the next cursor, 0 at the end; ids of tasks
-- Repeat  the same answer: the script does not write.
-- Cost    about the messages of a page.

local leased = KEYS[1]
local cursor, page_size = ARGV[1], ARGV[2]

-- Properties follow the body at the end of an envelope. Inside a body quotes are escaped.
local TAIL = 2000
local page = redis.call('HSCAN', leased, cursor, 'COUNT', page_size)
local ids = {}
for at = 2, #page[2], 2 do
  local entry = page[2][at]
  ids[#ids + 1] = string.match(string.sub(entry, -TAIL), '[^\\]"correlation_id": ?"([^"\\]+)"')
    or string.match(entry, '[^\\]"correlation_id": ?"([^"\\]+)"')
end
return {page[1], ids}
