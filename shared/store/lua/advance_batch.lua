-- uses: bookkeeping, held, webhooks
-- args: id, #most, receiving, cancelling, dropped, queued, sources, cancelled, retention
-- ADVANCE_BATCH: does the next piece of work for a batch: starts, cancels or erases some of its items, or shortens
-- their TTLs to that of the batch.
-- most: how many items at once.   Returns 1 if something is left to do, else 0
local record, items = key_batch(id), key_batch_items(id)
write_without_memory()
local batch = call('HMGET', record, 'state', 'tenant', 'started_to', 'cancelled_to', 'common', 'timeout_ms',
  'expires_ms', 'not_before_ms', 'created_ms', 'key', 'webhook_of_items', 'kept_to', 'user')

local function erase_some()
  call('DEL', key_batch_ended(id)) -- first: the list shrinks from its head, and lines would name other lines' jobs
  for _, job in ipairs(call('LRANGE', items, 0, most - 1)) do
    if job ~= '' then
      give_up_request(job, batch[2])
      call('DEL', key_job(job), key_result(job), key_log(job))
      call('ZREM', key_unfolded(), job)
      if batch[11] then forget_delivery(job) end
    end
  end
  call('LTRIM', items, most, -1)
  if call('EXISTS', items) == 1 then return 1 end
  forget_delivery(id)
  call('DEL', record, key_batch_invalid(id), key_batch_ended(id), key_batch_followed(id))
  call('ZREM', key_due(), id)
  return 0
end

-- Joins the part of the spec that all items share and the item's own, whose end user counts if both have one: of equal
-- names in JSON, the last counts.
local function start_item(job, place)
  local own = call('HMGET', key_job(job), 'flow', 'spec')
  local flow, spec = own[1], string.sub(batch[5], 1, -2) .. ',' .. string.sub(own[2], 2)
  if batch[13] then flow = with_user(flow, batch[13]) end
  call('HSET', key_job(job), 'tenant', batch[2], 'state', queued, 'flow', flow, 'place', place, 'created_ms', batch[9],
    'expires_ms', batch[7], 'timeout_ms', batch[6], 'spec', spec)
  if batch[10] then call('HSET', key_job(job), 'key', batch[10]) end
  if batch[11] then call('HSET', key_job(job), 'webhook', 'batch') end
  call('ZADD', key_waiting(), batch[7], job) -- and is among the queued: START counted it
  local not_before = tonumber(batch[8])
  if not_before and not_before > now then
    call('ZADD', key_deferred(), int(not_before), job)
  else
    enqueue(job, flow, place)
  end
end

local function start_some(from)
  local jobs = call('LRANGE', items, from, from + most - 1)
  local place = call('INCRBY', key_places(), #jobs) - #jobs
  for number, job in ipairs(jobs) do
    if job ~= '' then start_item(job, int(place + number)) end
  end
  call('HSET', record, 'started_to', from + #jobs)
  wake()
end

local function cancel_some(from, to)
  local jobs = call('LRANGE', items, from, math.min(from + most, to) - 1)
  for _, job in ipairs(jobs) do
    cancel_job(job, nil, sources, cancelled, retention)
  end
  call('HSET', record, 'cancelled_to', from + #jobs)
end

-- When an item ended, the end of its batch was unknown, so its TTL is long. Now it shall not outlive the batch.
local function keep_some(from)
  local jobs, left = call('LRANGE', items, from, from + most - 1), call('PTTL', record)
  local until_ms = kept_until(left)
  for _, job in ipairs(jobs) do
    if job ~= '' then
      local kept = call('HMGET', key_job(job), 'bytes', 'kept_until')
      if kept[2] and tonumber(kept[2]) > tonumber(until_ms) then
        keep_no_more(batch[2], kept[1], kept[2])
        keep_bytes(batch[2], kept[1], until_ms)
        call('HSET', key_job(job), 'kept_until', until_ms)
      end
      for _, key in ipairs({key_job(job), key_result(job)}) do
        if call('PTTL', key) > left then call('PEXPIRE', key, int(left)) end
      end
    end
  end
  call('HSET', record, 'kept_to', from + #jobs)
end

if batch[1] == dropped then return erase_some() end
if batch[1] == receiving then return 0 end -- its body is coming in
local length = call('LLEN', items)
local started_to, cancelled_to, kept_to = tonumber(batch[3] or 0), tonumber(batch[4] or 0), tonumber(batch[12] or 0)
if batch[1] == BATCH_ENDED and kept_to < length then
  keep_some(kept_to)
elseif batch[1] == cancelling and cancelled_to < started_to then
  cancel_some(cancelled_to, started_to)
elseif batch[1] and started_to < length then
  start_some(started_to)
  -- In the same step, so that no worker can claim an item of a batch that is being cancelled.
  if batch[1] == cancelling then cancel_some(started_to, length) end
else
  call('ZREM', key_due(), id)
  return 0
end
call('ZADD', key_due(), int(now + 2000), id)
return 1
