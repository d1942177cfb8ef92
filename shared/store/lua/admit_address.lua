-- uses: window
-- args: address, #limit
-- ADMIT_ADDRESS: one more request of an address. limit: requests a minute. What is refused is not counted.
-- Returns {ms to wait or 0, remaining, ms until all of it is there again}
write_without_memory()
local window = window_of(pace(), key_address(address))
local wait_ms = room_ms(window, REQUESTS, 1, limit)
if wait_ms == 0 then count_in(window, {1, 0}) end
return {int(wait_ms), int(math.max(0, limit - window.sums[REQUESTS])), int(whole_ms(window, REQUESTS))}
