-- Claims a batch for a run of its coordinator; earlier claims become void.
-- KEYS    batch
-- ARGV    none
-- Answer  the number of the claim, 0 if there is no batch
-- Repeat  another claim: the number of the first one is void.
-- Cost    one batch.

local batch = KEYS[1]

if redis.call('EXISTS', batch) == 0 then return 0 end
return redis.call('HINCRBY', batch, 'epoch', 1)
