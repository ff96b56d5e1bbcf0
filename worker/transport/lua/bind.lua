-- Binds a queue to an exchange as kombu does, on a server that is full: after a first write that
-- shrinks. It takes a few bytes for each process that consumes.
-- KEYS    bindings, those that stay
-- ARGV    binding
-- Answer  nothing
-- Repeat  nothing more happens.
-- Cost    3 commands.

local bindings, permanent, binding = KEYS[1], KEYS[2], ARGV[1]
redis.call('SREM', bindings, '')
redis.call('SADD', bindings, binding)
redis.call('SADD', permanent, binding)
