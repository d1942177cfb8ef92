-- uses: window
-- args: address, #limit
-- ADMIT_ADDRESS: counts one more request of an address, unless it is refused. limit: requests per minute.
-- Returns {ms to wait (0: it may go ahead), used, ms until the whole limit is free again, now}
write_without_memory()
local window = window_of(pace(), key_address(address))
local wait_ms = room_ms(window, REQUESTS, 1, limit)
if wait_ms == 0 then count_in(window, {1, 0}) end
return {int(wait_ms), int(window.sums[REQUESTS]), int(whole_ms(window, REQUESTS)), int(now)}
