-- Puts messages back after their deadline, the oldest next in line. Messages of leases are marked as
-- redelivered, deferred ones are not. Reads up to `scan` index entries from a cursor on, and restores
-- up to `limit` messages or `bytes` of them. The cursor is a score and the number of entries of that
-- score to skip.
-- KEYS    unacked, index
-- ARGV    key prefix, separator, lease timeout, visibility timeout, the cursor's score and number,
--         scan, limit, bytes
-- Answer  {leases restored, deferred messages restored, 1 if there is more to read, expired tags of
--         stock workers, which need kombu's routing, the next cursor's score and number, the last
--         refusal of a list, if any}
-- Repeat  like another sweep: restores the messages that are due then.
-- Cost    2 commands, of which one reads `scan` entries beyond the skipped ones, and 6 for each
--         message restored.

local unacked, index = KEYS[1], KEYS[2]
local prefix, separator, timeout = ARGV[1], ARGV[2], tonumber(ARGV[3])
local visibility, now = tonumber(ARGV[4]), tonumber(after(0))
local last, same = ARGV[5], tonumber(ARGV[6])
local scan, limit, bytes = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
-- Seconds for which an entry outlives its score, by kind; tags of stock workers have no kind. `lease`
-- and `hold` are of earlier versions: their score is the time of the last renewal, or of a fetch that
-- is not renewed.
local lasts = {timed = 0, parked = 0, lease = timeout, hold = visibility}

local rows = redis.call('ZRANGEBYSCORE', index, last, now, 'WITHSCORES', 'LIMIT', same, scan)
local due, foreign, more = {}, {}, #rows == 2 * scan
for at = 1, #rows, 2 do
  local tag, score = rows[at], rows[at + 1]
  local kind = string.match(tag, '^(%a+):%-?%d+:')
  local ours = kind and lasts[kind]
  local over = score + (ours or visibility) <= now
  if over and ours then
    if #due >= limit or bytes <= 0 then
      more = true
      break
    end
    due[#due + 1] = tag
    bytes = bytes - redis.call('HSTRLEN', unacked, tag)
  else
    if over then foreign[#foreign + 1] = tag end
    same = score == last and same + 1 or 1
    last = score
  end
end
local leases, deferred = 0, 0
for at = #due, 1, -1 do
  if string.find(due[at], '^parked:') then
    deferred = deferred + put_back(unacked, index, due[at], false, prefix, separator)
  else
    leases = leases + put_back(unacked, index, due[at], true, prefix, separator)
  end
end
return {leases, deferred, more and 1 or 0, foreign, last, same, refusal}
