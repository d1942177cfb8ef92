-- uses: upstream
-- args: limited...
-- LOOK: the state of the routes that were called last, and of those that are shut or whose circuit is open. Writes only
-- to drop what is too old.
-- limited: for each route with limits its name, requests, input tokens, output tokens, concurrency ('' for none)
-- Returns for each {route, ms until it may be called (0: now), why, since when its circuit is open or 0, how many more
-- calls its limits allow or -1 for any number, and of its requests, input tokens and output tokens of a minute each the
-- limit and what is left of it, -1 for no limit}
local limits = {}
for at = 1, #limited, 5 do limits[limited[at]] = {unpack(limited, at + 1, at + 4)} end
write_without_memory()
for _, route in ipairs(call('ZRANGEBYSCORE', key_routes(), '-inf', int(now - 3600000), 'LIMIT', 0, 100)) do
  -- A route with calls that nobody has closed stays: HOLD must find it.
  if call('EXISTS', key_calls(route)) == 0 then call('ZREM', key_routes(), route) end
end
-- Troubled routes are added: a caller who names thousands of models must not push them out of the list.
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
  local room, left = -1, {-1, -1, -1, -1, -1, -1}
  local function at_most(number)
    if room < 0 or number < room then room = math.max(0, number) end
  end
  if requests or input or output then
    local window = window_of(ASKED, key_window(route))
    local wait = requests and room_ms(window, CALLS, 1, requests) or 0
    if requests then at_most(requests - window.sums[CALLS]) end
    for at, pair in ipairs({{requests, CALLS}, {input, INPUT}, {output, OUTPUT}}) do
      local limit, place = unpack(pair, 1, 2)
      if limit then left[2 * at - 1], left[2 * at] = limit, math.max(0, limit - window.sums[place]) end
    end
    for place, limit in pairs({[INPUT] = input, [OUTPUT] = output}) do
      if window.sums[place] >= limit then at_most(0) end
      wait = math.max(wait, room_ms(window, place, 1, limit))
    end
    if wait > 0 and shut == 0 then reason = 'full' end -- of a shut gate that is also full, the gate is what matters
    shut = math.max(shut, wait)
  end
  if set[4] ~= '' then
    at_most(tonumber(set[4]) - running_of(route))
    if room == 0 and shut == 0 then shut, reason = 50, 'full' end
  end
  if open and shut == 0 then at_most(1) end -- ready for its probe
  reply[#reply + 1] = {route, int(shut), reason, int(open or 0), int(room), unpack(left)}
end
return reply
