-- Lanes: the deliveries of one tenant to one origin, which wait for each other and for nobody else. KEYS[1] is the shard's.

-- When a lane should be looked at next: at its first due delivery if it has room for it, else when a lease expires.
-- not_before: of those that it must leave to others for now.
local function place_lane(lane, room, not_before)
  local due = call('ZRANGE', key_unsent(lane), 0, 0, 'WITHSCORES')[2]
  local expiry = call('ZRANGE', key_sending(lane), 0, 0, 'WITHSCORES')[2]
  local look
  if due and room > 0 then look = math.max(tonumber(due), not_before) end
  if expiry then look = math.min(look or tonumber(expiry), tonumber(expiry)) end
  if look then call('ZADD', key_lanes(), int(look), lane) else call('ZREM', key_lanes(), lane) end
end

local function stop_sending(id, lane, tenant)
  call('ZREM', key_sending(lane), id)
  call('SREM', key_tenant_sending(tenant), id)
end

-- The end of a delivery: told, or given up. A tenant's own retention goes before ours.
local function finish_delivery(id, tenant, state, retention_ms)
  call('HSET', key_delivery(id), 'state', state, 'ended_ms', int(now))
  call('HDEL', key_delivery(id), 'due_ms')
  local own = call('HGET', key_tenant(tenant), 'result_retention_ms')
  call('PEXPIRE', key_delivery(id), int(tonumber(own or retention_ms)))
end

-- Behind the attempts of the newest schedule.
local function note_attempt(id, attempt_json)
  local history = call('HGET', key_delivery(id), 'history')
  call('HSET', key_delivery(id), 'history', history and history .. ',' .. attempt_json or attempt_json)
end
