-- Functions that the transport's scripts share. This text stands before each of them.

-- Seconds until a message is tried again after its list has refused it.
local REFUSED = 60

-- The error reply of a command, if it is refused.
local function refused(...)
  local reply = redis.pcall(...)
  return type(reply) == 'table' and reply.err and reply
end

-- The time so many seconds from now, by this server's clock.
local function after(seconds)
  local time = redis.call('TIME')
  return string.format('%.6f', time[1] + time[2] / 1000000 + seconds)
end
