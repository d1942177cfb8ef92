-- The head of the scripts that keep what is neither a job's nor an upstream's. KEYS[1] is the prefix of what is no shard's.
local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Lua's own conversion keeps 14 digits and may write an exponent: every number that is stored goes through here.
local function int(number) return string.format('%.0f', number) end
