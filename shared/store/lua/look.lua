-- LOOK: how things stand with the routes that were called last, and with all that are shut or whose circuit is open. Reads, but
-- for what has aged.
-- ARGV: route, limits: requests, input tokens, output tokens, concurrency ('' for none), route, ...
-- Returns for each {route, ms until it may be called (0: now), why, since when its circuit is open or 0, calls that it has
-- room for or -1 for any number}
local limits = {}
for i = 1, #ARGV, 5 do limits[ARGV[i]] = {ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]} end
call('ZREM', key_routes(), '') -- as write_without_memory
for _, route in ipairs(call('ZRANGEBYSCORE', key_routes(), '-inf', int(now - 3600000), 'LIMIT', 0, 100)) do
  -- While it has calls that nobody closed, HOLD must find it.
  if call('EXISTS', key_calls(route)) == 0 then call('ZREM', key_routes(), route) end
end
-- A caller that names thousands of models hides no troubled route behind them.
local routes, is_there = call('ZREVRANGE', key_routes(), 0, 99), {}
for _, route in ipairs(routes) do is_there[route] = true end
for _, route in ipairs(call('ZREVRANGE', key_troubled(), 0, 99)) do
  local shut, _, open = gate_of(route)
  if shut == 0 and not open then
    call('ZREM', key_troubled(), route)
  elseif not is_there[route] then
    routes[#routes + 1] = route
  end
end
local reply = {}
for _, route in ipairs(routes) do
  local shut, reason, open = gate_of(route)
  local set = limits[route] or {'', '', '', ''}
  local requests, input, output = limits_of(route, set[1], set[2], set[3])
  local room = -1
  local function at_most(number)
    if room < 0 or number < room then room = math.max(0, number) end
  end
  if requests or input or output then
    local window = window_of(route)
    local sums = window[1]
    local wait = 0
    if requests then
      at_most(requests - sums[1])
      if requests <= sums[1] then wait = math.max(wait, room_ms(route, window, 1, 1, requests)) end
    end
    if input and sums[3] >= input then
      at_most(0)
      wait = math.max(wait, room_ms(route, window, 3, 1, input))
    end
    if output and sums[4] >= output then
      at_most(0)
      wait = math.max(wait, room_ms(route, window, 4, 1, output))
    end
    if wait > 0 and shut == 0 then reason = 'full' end -- of a shut gate that is also full, the gate is what matters
    shut = math.max(shut, wait)
  end
  if set[4] ~= '' then
    at_most(tonumber(set[4]) - running_of(route))
    if room == 0 and shut == 0 then shut, reason = 50, 'full' end
  end
  if open and shut == 0 then at_most(1) end -- ready for its probe
  reply[#reply + 1] = {route, int(shut), reason, int(open or 0), int(room)}
end
return reply
