-- uses: now
-- The bytes of Redis that a tenant's requests hold, from the step that stores a request to the step that gives it up. A
-- job that succeeds gives its request up at its end, since nobody needs it any more. Those of other ended jobs are kept
-- for a retry as long as their records. No script notices when a record's TTL ends, so the bytes of kept requests are
-- summed by the hour in which they will be gone.
local HOUR_MS = 3600000

-- Adds to what the tenant holds (bytes may be negative). Returns what it holds now.
local function hold_bytes(tenant, bytes)
  local held = call('HINCRBY', key_held_bytes(), tenant, int(bytes))
  if held <= 0 then call('HDEL', key_held_bytes(), tenant) end
  return held
end

-- The end of the hour in which a record will be gone; of the day, where there would be too many hours.
local function kept_until(kept_ms)
  local width = kept_ms > 30 * DAY_MS and DAY_MS or HOUR_MS
  return int(math.ceil((now + kept_ms) / width) * width)
end

local function keep_bytes(tenant, bytes, until_ms)
  call('HINCRBY', key_kept_bytes(tenant), until_ms, int(bytes))
  call('ZADD', key_kept_due(), 'LT', until_ms, tenant)
end

local function keep_no_more(tenant, bytes, until_ms)
  if call('HINCRBY', key_kept_bytes(tenant), until_ms, int(-bytes)) <= 0 then
    call('HDEL', key_kept_bytes(tenant), until_ms)
  end
end

-- To be called before a record is erased: its request is held no longer.
local function give_up_request(id, tenant)
  local job = call('HMGET', key_job(id), 'bytes', 'kept_until')
  if not job[1] then return end
  if job[2] then keep_no_more(tenant, job[1], job[2]) end
  hold_bytes(tenant, -job[1])
end

-- Takes out the kept requests whose records are gone by now, of one tenant.
local function drop_kept()
  local tenant = call('ZRANGEBYSCORE', key_kept_due(), '-inf', int(now), 'LIMIT', 0, 1)[1]
  if not tenant then return end
  local kept, gone, next_ms = call('HGETALL', key_kept_bytes(tenant)), 0, nil
  for i = 1, #kept, 2 do
    local until_ms = tonumber(kept[i])
    if until_ms <= now then
      gone = gone + kept[i + 1]
      call('HDEL', key_kept_bytes(tenant), kept[i])
    elseif not next_ms or until_ms < next_ms then
      next_ms = until_ms
    end
  end
  if gone > 0 then hold_bytes(tenant, -gone) end
  if next_ms then call('ZADD', key_kept_due(), int(next_ms), tenant) else call('ZREM', key_kept_due(), tenant) end
end
