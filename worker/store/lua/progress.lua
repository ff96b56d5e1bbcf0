-- Writes the progress of running jobs and publishes one event; ended jobs do not change.
-- KEYS    ledger
-- ARGV    JSON: queue, record_ttl, jobs: each an array of its id, seconds since it started, texts
--         done, total texts, estimate of its tokens from the known ones, or 0
-- Answer  nothing
-- Repeat  the same fields are written, and the event is published again.
-- Cost    the jobs given.

local ledger, given = KEYS[1], cjson.decode(ARGV[1])
local changes, told, time = {}, {}, clock()
for _, running in ipairs(given.jobs) do
  local id, age, done, total, estimate = unpack(running)
  local job = JOB .. id
  local status, tokens, _, share = parts(job)
  -- A job that was submitted without a record gets one.
  if not status or is_open(status) then
    redis.call('HSET', job, 'status', 'running', 'started', seconds(time - age),
      'done', done, 'total', total, 'queue', given.queue)
    if estimate > 0 and tonumber(tokens or '') then
      local more = estimate - tonumber(tokens)
      add(changes, 'tokens', more)
      if share then add(changes, share, more) end
      redis.call('HSET', job, 'tokens', estimate)
    end
    redis.call('EXPIRE', job, given.record_ttl)
    told[id] = {done, total}
  end
end
write(ledger, changes)
if next(told) then redis.call('PUBLISH', EVENTS, cjson.encode({progress = told})) end
