-- Puts leased messages back; the last one in ARGV is next in line.
-- KEYS    unacked, index
-- ARGV    '1' to mark them as redelivered, key prefix, separator, then tags
-- Answer  the last refusal of a list, if any
-- Repeat  no effect.
-- Cost    5 commands for each tag.

local unacked, index = KEYS[1], KEYS[2]
local marked, prefix, separator = ARGV[1] == '1', ARGV[2], ARGV[3]
for at = 4, #ARGV do put_back(unacked, index, ARGV[at], marked, prefix, separator) end
return refusal
