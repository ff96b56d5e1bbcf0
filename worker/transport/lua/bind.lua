-- Binds a queue to an exchange as kombu does, on a full server: the first write is one that shrinks.
-- It takes a few bytes for each consuming process.
-- KEYS    bindings, those that stay
-- ARGV    binding
-- Answer  nil
-- Repeat  no effect.
-- Cost    3 commands.

local bindings, permanent, binding = KEYS[1], KEYS[2], ARGV[1]
redis.call('SREM', bindings, '')
redis.call('SADD', bindings, binding)
redis.call('SADD', permanent, binding)
