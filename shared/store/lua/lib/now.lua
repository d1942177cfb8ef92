-- Redis's clock in milliseconds: the clocks of other machines do not matter.
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local DAY_MS = 86400000
