-- Writes fields of a batch, for its last claim, if the batch has one of some statuses.
-- KEYS    batch
-- ARGV    number of the claim or '', statuses between bars or '' for any, then fields and values
-- Answer  the status afterwards, or '' if the claim is not the last one or there is no batch
-- Repeat  the same fields are written, unless that changed the status to one that is not allowed.
-- Cost    the fields given.

local batch = KEYS[1]
local claim, come_from, fields = ARGV[1], ARGV[2], {unpack(ARGV, 3)}

local status, epoch = unpack(redis.call('HMGET', batch, 'status', 'epoch'))
if not status or (claim ~= '' and epoch ~= claim) then return '' end
if come_from ~= '' and not string.find(come_from, '|' .. status .. '|', 1, true) then
  return status
end
redis.call('HSET', batch, unpack(fields))
return redis.call('HGET', batch, 'status')
