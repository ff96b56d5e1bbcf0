-- Notes how far running jobs are, and gives one notice; jobs that have ended stay as they are.
-- KEYS    ledger
-- ARGV    queue, record ttl, then for each job: id, seconds since it started, texts done, texts in
--         all, estimate of its tokens by those that are known, or 0
-- Answer  nothing
-- Repeat  the same fields are written, and the notice comes again.
-- Cost    the jobs given.

local queue, changes, told, any, time = ARGV[1], {}, {}, false, clock()
for at = 3, #ARGV, 5 do
  local id, done, total = ARGV[at], ARGV[at + 2], ARGV[at + 3]
  local job, estimate = JOB .. id, tonumber(ARGV[at + 4])
  local status, tokens, _, share = parts(job)
  -- A job of a producer without a record gets one.
  if not status or is_open(status) then
    redis.call('HSET', job, 'status', 'running', 'started', seconds(time - tonumber(ARGV[at + 1])),
      'done', done, 'total', total, 'queue', queue)
    if estimate > 0 and tonumber(tokens or '') then
      local more = estimate - tonumber(tokens)
      add(changes, 'tokens', more)
      if share then add(changes, share, more) end
      redis.call('HSET', job, 'tokens', estimate)
    end
    redis.call('EXPIRE', job, ARGV[2])
    told[id], any = {tonumber(done), tonumber(total)}, true
  end
end
write(KEYS[1], changes)
if any then redis.call('PUBLISH', EVENTS, cjson.encode({progress = told})) end
