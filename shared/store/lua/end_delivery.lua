-- uses: lanes
-- args: id, epoch, state, delay_ms, attempt, retention_ms, gone_ms, is_delivered
-- END_DELIVERY: records how an attempt ended. delay_ms: until the next attempt. attempt: as JSON, '' if none was made.
-- gone_ms: how long the endpoint is disabled, or ''. is_delivered: 1 if it arrived, which enables the endpoint again.
-- Returns 1 | 0 (the attempt no longer belongs to this worker)
write_without_memory()
local found = call('HMGET', key_delivery(id), 'epoch', 'lane', 'tenant', 'endpoint')
if not found[1] or found[1] ~= epoch or not call('ZSCORE', key_sending(found[2]), id) then return 0 end
local lane, tenant = found[2], found[3]
stop_sending(id, lane, tenant)
if attempt ~= '' then note_attempt(id, attempt) end
if state == DELIVERY_PENDING then
  local due = int(now + delay_ms)
  if attempt ~= '' then call('HINCRBY', key_delivery(id), 'failures', 1) end
  call('HSET', key_delivery(id), 'due_ms', due)
  call('ZADD', key_unsent(lane), due, id)
else
  finish_delivery(id, tenant, state, retention_ms)
end
if gone_ms ~= '' then call('SET', key_webhook_gone(tenant, found[4]), 1, 'PX', gone_ms) end
if is_delivered == '1' then call('DEL', key_webhook_gone(tenant, found[4])) end
place_lane(lane, tenant, true, call('EXISTS', key_parked_lanes(tenant)) == 0) -- after those that wait already
unpark_lanes(tenant, 1)
return 1
