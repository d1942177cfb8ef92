-- uses: now
-- args: lease_ms, #most, calls...
-- HOLD: renews the hold on a worker's running calls. Also finds calls whose worker is silent, at most `most`: the
-- caller closes their rows. calls: route, call id, route, call id, ...
-- Returns for each silent worker's call {call id, route, tenant, API key or '', job, epoch, attempt, model, input
-- estimate, opened_ms, end user or ''}
write_without_memory() -- a call that goes on is not to look abandoned at maxmemory
for at = 1, #calls, 2 do call('ZADD', key_calls(calls[at]), 'XX', int(now + lease_ms), calls[at + 1]) end
local abandoned = {}
-- The routes that were called last, and those that were not called for longest: LOOK keeps a route until its last call
-- is closed.
local routes = call('ZREVRANGE', key_routes(), 0, 99)
for _, route in ipairs(call('ZRANGE', key_routes(), 0, 19)) do routes[#routes + 1] = route end
for _, route in ipairs(routes) do
  local left = most - #abandoned
  if left <= 0 then break end
  for _, id in ipairs(call('ZRANGEBYSCORE', key_calls(route), '-inf', '(' .. int(now), 'LIMIT', 0, left)) do
    local row = call('HMGET', key_call(id), 'tenant', 'key', 'job', 'epoch', 'attempt', 'model', 'input_estimate',
      'opened_ms', 'end_user')
    if row[1] then
      row[9] = row[9] or ''
      abandoned[#abandoned + 1] = {id, route, unpack(row)}
      call('ZADD', key_calls(route), int(now + lease_ms), id) -- whoever asks next need not close it too
    else
      call('ZREM', key_calls(route), id)
    end
  end
end
return abandoned
