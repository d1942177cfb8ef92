-- uses: limits
-- args: id, receiving, silent_ms, #most_waiting, queued, failed, key_limits, tenant_bytes, items...
-- ADD_ITEMS: stores the next lines of a batch's body. Until the batch starts, their records have no tenant, and they
-- wait in no flow.
-- silent_ms: how long the body may stay silent before the batch is given up. queued, failed: names of the states.
-- tenant_bytes: the most bytes that a tenant's requests may take.
-- items: for each its line, job id ('' if it cannot run), flow, request, its own part of the spec (or why it cannot
-- run, as JSON), and its estimated cost in nano-dollars.
-- Returns {'added'} | {'full'} | {'gone'} | {'limited', ...} | {'never', ...}, the last two as in SUBMIT
local ITEM = 6
local record, lines = key_batch(id), key_batch_items(id)
local batch = call('HMGET', record, 'state', 'live', 'tenant', 'key', 'bytes')
if batch[1] ~= receiving then return {'gone'} end
local jobs, bytes = tonumber(batch[2] or 0), 0
for at = 1, #items, ITEM do
  local _, job, _, request, spec = unpack(items, at, at + ITEM - 1)
  if job ~= '' then
    jobs = jobs + 1
    bytes = bytes + #request + #spec
  end
end
if call('ZCARD', key_waiting()) + jobs > most_waiting then return {'full'} end
-- START_BATCH decides, but if it would refuse these lines, no more need to arrive.
local key = batch[4] or ''
local owners = owners_of(batch[3], key, key_limits)
local refusal = refusal_of(look_at_limits(owners, key, jobs, 0, 0, false))
if refusal then return refusal end
if bytes > 0 then
  refusal = hold_or_refuse(owners, batch[3], bytes, tenant_bytes, tonumber(batch[5] or 0))
  if refusal then return refusal end
  call('HINCRBY', record, 'bytes', bytes)
end

local length, can_run, cannot_run = call('LLEN', lines), 0, 0
for at = 1, #items, ITEM do
  local line, job, flow, request, spec, estimate = unpack(items, at, at + ITEM - 1)
  local blank = tonumber(line) - length - 1
  while blank > 0 do -- a thousand at a time: there may be as many as lines
    local some = {}
    for number = 1, math.min(blank, 1000) do some[number] = '' end
    call('RPUSH', lines, unpack(some))
    blank = blank - #some
  end
  length = tonumber(line)
  call('RPUSH', lines, job)
  if job ~= '' then
    can_run = can_run + 1
    call('HSET', key_job(job), 'flow', flow, 'request', request, 'spec', spec, 'batch', id, 'line', line,
      'bytes', #request + #spec)
    if estimate ~= '0' then call('HSET', key_job(job), 'estimate', estimate) end
  else
    cannot_run = cannot_run + 1
    call('HSET', key_batch_invalid(id), line, spec)
    call('ZADD', key_batch_ended(id), call('ZCARD', key_batch_ended(id)), line)
  end
end
call('HINCRBY', record, 'total', can_run + cannot_run)
call('HINCRBY', record, 'live', can_run)
call('HINCRBY', record, queued, can_run)
call('HINCRBY', record, failed, cannot_run)
if cannot_run > 0 then call('HINCRBY', record, 'invalid', cannot_run) end
call('ZADD', key_due(), int(now + silent_ms), id)
return {'added'}
