-- uses: now, lanes
-- Webhooks: the step that ends a job or a batch creates its delivery.
local function delivery_of(subject) return 'evt_' .. string.match(subject, '_(.*)$') end

-- The decoded webhook if it asks for the event, else nil. webhook: as JSON.
local function wanted(webhook, event)
  local asked = cjson.decode(webhook)
  for _, one in ipairs(asked.events) do
    if one == event then return asked end
  end
  return nil
end

-- facts: more fields of the record. All that is sent is in it: the subject may be gone when its delivery is sent.
local function begin_delivery(asked, event, subject, tenant, status, facts)
  local id, lane = delivery_of(subject), tenant .. ':' .. asked.origin
  call('HSET', key_delivery(id), 'tenant', tenant, 'lane', lane, 'event', event, 'subject', subject, 'status', status,
    'url', asked.url, 'endpoint', asked.endpoint, 'with_result', asked.result and 1 or 0, 'created_ms', int(now),
    'state', DELIVERY_PENDING, 'due_ms', int(now), 'epoch', 0, 'failures', 0, unpack(facts))
  add_to_index(key_delivery_index(tenant), id, key_delivery)
  call('ZADD', key_unsent(lane), int(now), id)
  call('ZADD', key_lanes(), 'LT', int(now), lane)
  call('PUBLISH', channel_deliveries(), '')
end

-- webhook: the job's own, as JSON; 'batch' for an item whose batch asks for events of jobs.
local function deliver_end_of_job(webhook, id, tenant, state, batch, usage)
  if webhook == 'batch' then webhook = call('HGET', key_batch(batch), 'webhook') end
  local event = JOB_EVENT .. state
  local asked = webhook and wanted(webhook, event)
  if not asked then return end
  local facts, found = {}, call('HMGET', key_job(id), 'error', 'spec')
  local function fact(name, value)
    if value then facts[#facts + 1], facts[#facts + 2] = name, value end
  end
  fact('usage', usage)
  fact('error', found[1])
  if batch then
    fact('batch', batch)
    fact('custom_id', cjson.decode(found[2]).custom_id)
  end
  begin_delivery(asked, event, id, tenant, state, facts)
end

local function deliver_end_of_batch(id)
  local record = key_batch(id)
  local batch = call('HMGET', record, 'webhook', 'tenant')
  local asked = batch[1] and wanted(batch[1], BATCH_EVENT)
  if not asked then return end
  local function numbers(fields)
    local parts = {}
    for name in string.gmatch(fields, '[^,]+') do
      parts[#parts + 1] = '"' .. name .. '":' .. (call('HGET', record, name) or '0')
    end
    return '{' .. table.concat(parts, ',') .. '}'
  end
  begin_delivery(asked, BATCH_EVENT, id, batch[2], BATCH_ENDED,
    {'counts', numbers(BATCH_COUNTS), 'usage', numbers(USAGE_FIELDS)})
end

local function drop_delivery(id)
  local found = call('HMGET', key_delivery(id), 'lane', 'tenant')
  if not found[1] then return end
  call('ZREM', key_unsent(found[1]), id)
  if call('EXISTS', key_unsent(found[1])) == 0 then call('ZREM', key_parked_lanes(found[2]), found[1]) end
  if stop_sending(id, found[1], found[2]) then unpark_lanes(found[2], 1) end
  if call('EXISTS', key_unsent(found[1]), key_sending(found[1])) == 0 then call('ZREM', key_lanes(), found[1]) end
  call('ZREM', key_delivery_index(found[2]), id)
  call('DEL', key_delivery(id))
end

-- The subject is erased: nobody is sent its delivery any more.
local function forget_delivery(subject) drop_delivery(delivery_of(subject)) end
