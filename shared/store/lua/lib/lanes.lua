-- uses: now
-- A lane holds the deliveries of one tenant to one origin: they wait for each other, and for no other lane's.

-- Sets when to look at a lane next: when its first delivery is due, if it has room for one, else when a lease expires.
-- A lane that is due while its tenant has no room is parked: whatever makes room unparks it. After PARKED_MS it is
-- looked at in any case, so that a missed unpark delays it but loses nothing.
local PARKED_MS = 60000
local function place_lane(lane, tenant, lane_has_room, tenant_has_room)
  local due = call('ZRANGE', key_unsent(lane), 0, 0, 'WITHSCORES')[2]
  local expiry = call('ZRANGE', key_sending(lane), 0, 0, 'WITHSCORES')[2]
  local look
  if due and lane_has_room then look = math.max(tonumber(due), now) end
  if look == now and not tenant_has_room then
    call('ZADD', key_parked_lanes(tenant), 'NX', int(now), lane)
    look = now + PARKED_MS
  else
    call('ZREM', key_parked_lanes(tenant), lane)
  end
  if expiry then look = math.min(look or tonumber(expiry), tonumber(expiry)) end
  if look then call('ZADD', key_lanes(), int(look), lane) else call('ZREM', key_lanes(), lane) end
end

-- Unparks as many lanes as the tenant has room for attempts. Those that have waited longest are first, so that a lane
-- with many deliveries does not hold up the others. They are due now, after the due lanes of other tenants.
local function unpark_lanes(tenant, room)
  local parked = call('ZPOPMIN', key_parked_lanes(tenant), room)
  for i = 1, #parked, 2 do call('ZADD', key_lanes(), 'LT', int(now), parked[i]) end
end

-- Ends an attempt. Returns whether it was under way: then its tenant has room for another.
local function stop_sending(id, lane, tenant)
  call('ZREM', key_sending(lane), id)
  return call('SREM', key_tenant_sending(tenant), id) == 1
end

-- The end of a delivery: delivered or failed. A tenant's own retention overrides retention_ms.
local function finish_delivery(id, tenant, state, retention_ms)
  call('HSET', key_delivery(id), 'state', state, 'ended_ms', int(now))
  call('HDEL', key_delivery(id), 'due_ms')
  local own = call('HGET', key_tenant(tenant), 'result_retention_ms')
  call('PEXPIRE', key_delivery(id), int(tonumber(own or retention_ms)))
end

-- Appends an attempt to the history, which holds those of the newest schedule.
local function note_attempt(id, attempt_json)
  local history = call('HGET', key_delivery(id), 'history')
  call('HSET', key_delivery(id), 'history', history and history .. ',' .. attempt_json or attempt_json)
end
