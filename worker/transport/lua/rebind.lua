-- The same for a queue that expires: a first write that shrinks, before kombu's own script.
-- KEYS    bindings, their deadlines
-- ARGV    binding, exchange, milliseconds
-- Answer  nil
-- Repeat  the deadline counts from the repeat.
-- Cost    4 commands.

redis.call('SREM', KEYS[1], '')
