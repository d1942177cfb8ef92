-- END_DELIVERY: what became of an attempt.
-- ARGV: id, epoch, state, ms until the next attempt, the attempt as JSON or '' (none was made), retention_ms,
--       disable the endpoint for so long (ms) or '', 1 if that shows that it is there
-- Returns 1 | 0 (the attempt is not this caller's any more)
local id = ARGV[1]
write_without_memory()
local found = call('HMGET', key_delivery(id), 'epoch', 'lane', 'tenant', 'endpoint')
if not found[1] or found[1] ~= ARGV[2] or not call('ZSCORE', key_sending(found[2]), id) then return 0 end
local lane, tenant = found[2], found[3]
stop_sending(id, lane, tenant)
if ARGV[5] ~= '' then note_attempt(id, ARGV[5]) end
if ARGV[3] == DELIVERY_PENDING then
  local due = int(now + tonumber(ARGV[4]))
  if ARGV[5] ~= '' then call('HINCRBY', key_delivery(id), 'failures', 1) end
  call('HSET', key_delivery(id), 'due_ms', due)
  call('ZADD', key_unsent(lane), due, id)
else
  finish_delivery(id, tenant, ARGV[3], ARGV[6])
end
if ARGV[7] ~= '' then call('SET', key_webhook_gone(tenant, found[4]), 1, 'PX', ARGV[7]) end
if ARGV[8] == '1' then call('DEL', key_webhook_gone(tenant, found[4])) end
place_lane(lane, tenant, true, call('EXISTS', key_parked_lanes(tenant)) == 0) -- behind those that wait already
unpark_lanes(tenant, 1)
return 1
