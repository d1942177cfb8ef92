-- uses: lanes
-- args: #most, #lease_ms, #lane_most, #tenant_most, failed, disabled_note, retention_ms, fields...
-- CLAIM_DELIVERIES: gives a worker deliveries that are due, for one attempt each. lane_most, tenant_most: how many
-- attempts a lane and a tenant may have under way.
-- failed: name of the state. disabled_note: how the attempt's JSON goes on if the endpoint is disabled. fields: those
-- of the record to return.
-- Returns {ms until the next is due or -1, id, epoch, failed attempts so far, {fields}, ...}
write_without_memory()
local reply, taken, room_of = {-1}, 0, {}
for _, lane in ipairs(call('ZRANGEBYSCORE', key_lanes(), '-inf', int(now), 'LIMIT', 0, 2 * most)) do
  if taken >= most then break end
  local tenant = string.match(lane, '^([^:]+)')
  for _, id in ipairs(call('ZRANGEBYSCORE', key_sending(lane), '-inf', int(now))) do -- its worker is gone
    stop_sending(id, lane, tenant)
    if call('EXISTS', key_delivery(id)) == 1 then call('ZADD', key_unsent(lane), int(now), id) end
  end
  local lane_room = lane_most - call('ZCARD', key_sending(lane))
  local tenant_room = tenant_most - call('SCARD', key_tenant_sending(tenant))
  local room = math.max(0, math.min(most - taken, lane_room, tenant_room))
  local due = room > 0 and call('ZRANGEBYSCORE', key_unsent(lane), '-inf', int(now), 'LIMIT', 0, room) or {}
  for _, id in ipairs(due) do
    call('ZREM', key_unsent(lane), id)
    local found = call('HMGET', key_delivery(id), 'endpoint', 'failures', 'manual')
    if found[1] and not found[3] and call('EXISTS', key_webhook_gone(tenant, found[1])) == 1 then
      note_attempt(id, '{"at_ms":' .. int(now) .. ',' .. disabled_note .. '}')
      finish_delivery(id, tenant, failed, retention_ms)
    elseif found[1] then
      taken, lane_room, tenant_room = taken + 1, lane_room - 1, tenant_room - 1
      call('ZADD', key_sending(lane), int(now + lease_ms), id)
      call('SADD', key_tenant_sending(tenant), id)
      local epoch = call('HINCRBY', key_delivery(id), 'epoch', 1)
      call('HDEL', key_delivery(id), 'due_ms')
      reply[#reply + 1] = id
      reply[#reply + 1] = epoch
      reply[#reply + 1] = tonumber(found[2])
      reply[#reply + 1] = call('HMGET', key_delivery(id), unpack(fields))
    end
  end
  place_lane(lane, tenant, lane_room > 0, tenant_room > 0) -- after the other lanes that are due
  room_of[tenant] = tenant_room
end
-- Give the room that is left to parked lanes: an unparked lane may have had nothing to send, and leases expired.
for tenant, room in pairs(room_of) do
  if room > 0 then unpark_lanes(tenant, room) end
end
local first = call('ZRANGE', key_lanes(), 0, 0, 'WITHSCORES')[2]
if first then reply[1] = int(math.max(0, tonumber(first) - now)) end
return reply
