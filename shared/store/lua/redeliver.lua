-- uses: now
-- args: id, tenant
-- REDELIVER: sends a delivery again, now, with a new schedule of attempts. One that waits for an attempt gets it now;
-- one that is being sent stays as it is.
-- Returns 1 | -1 (no such delivery of this tenant)
write_without_memory()
local found = call('HMGET', key_delivery(id), 'tenant', 'lane')
if found[1] ~= tenant then return -1 end
if call('ZSCORE', key_sending(found[2]), id) then return 1 end -- is being sent
call('HSET', key_delivery(id), 'state', DELIVERY_PENDING, 'due_ms', int(now), 'failures', 0, 'manual', 1)
call('HDEL', key_delivery(id), 'history', 'ended_ms')
call('PERSIST', key_delivery(id))
call('ZADD', key_delivery_index(tenant), 0, id)
call('ZADD', key_unsent(found[2]), int(now), id)
call('ZADD', key_lanes(), 'LT', int(now), found[2])
call('PUBLISH', channel_deliveries(), '')
return 1
