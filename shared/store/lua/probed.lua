-- uses: now
-- args: route, id
-- PROBED: the upstream has begun to answer the probe of an open circuit. The circuit closes now, not at the answer's
-- end.
local record = key_route(route)
if call('HGET', record, 'probe') ~= id then return 0 end
call('HDEL', record, 'probe', 'open_ms', 'cooldown_ms', 'outcomes')
call('HSET', record, 'closed_ms', int(now))
call('PUBLISH', channel_gates(), route)
return 1
