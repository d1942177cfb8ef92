-- ADMIT_ADDRESS: one more request of an address. What is refused is not counted.
-- ARGV: address, requests a minute
-- Returns {ms to wait or 0, remaining, ms until all of it is there again}
local limit = tonumber(ARGV[2])
call('HDEL', key_address(ARGV[1]), '') -- as write_without_memory: at maxmemory too
local window = window_of(key_address(ARGV[1]))
local wait_ms = room_ms(window, 'requests', 1, limit)
if wait_ms == 0 then count_in(window, 1, 0) end
return {int(wait_ms), int(math.max(0, limit - window.requests)), int(whole_ms(window, 'requests'))}
