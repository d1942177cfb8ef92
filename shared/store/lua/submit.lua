-- uses: labels, limits, position
-- args: id, tenant, flow, state, request, spec, timeout_ms, #expires_in_ms, #not_before_ms, idempotency_hash,
--   fingerprint, #most_waiting, #most_flows, attended_by, is_quiet, believed_ms, #tokens, #max_tokens, key, key_limits,
--   user, webhook, estimate, tenant_bytes, labels
-- SUBMIT: creates a job, once per Idempotency-Key.
-- '' for none: not_before_ms, idempotency_hash, attended_by (an API process), key (API key), user (<tenant>/<hash>
-- of the end user), webhook (JSON).
-- most_flows: how many flows to count for the position. is_quiet: 1 for a job without a log that is in no list.
-- believed_ms: how long an API process is believed to live. tokens: how many to reserve; max_tokens of them are the
-- caller's bound, the rest is an estimate. estimate: what it may cost, in nano-dollars. tenant_bytes: the most bytes
-- that a tenant's requests may take. labels: separated by blanks.
-- Returns {'created', created_ms, expires_ms, position (0: its flow is parked, -1: it is not due), states}
--       | {'replayed', job id} | {'reused'} | {'full'}
--       | {'limited', ...} | {'never', ...}, these two as in refusal_of(); states as in states_of()
if idempotency_hash ~= '' then
  local known = call('HMGET', key_idempotency(tenant, idempotency_hash), 'fingerprint', 'job')
  if known[2] then
    if known[1] ~= fingerprint then return {'reused'} end
    return {'replayed', known[2]}
  end
end
if call('ZCARD', key_waiting()) >= most_waiting then return {'full'} end
local owners = owners_of(tenant, key, key_limits, user)
local limits = look_at_limits(owners, key, 1, tokens, max_tokens, true)
local refusal = refusal_of(limits)
if refusal then return refusal end
local bytes = #request + #spec
refusal = hold_or_refuse(owners, tenant, bytes, tenant_bytes)
if refusal then return refusal end

local place = call('INCR', key_places())
local expires = math.max(now, not_before_ms or 0) + expires_in_ms
local record = {'state', state, 'tenant', tenant, 'flow', flow, 'place', place, 'created_ms', int(now), 'expires_ms',
  int(expires), 'timeout_ms', timeout_ms, 'request', request, 'spec', spec, 'bytes', bytes}
local function note(field, value) record[#record + 1], record[#record + 2] = field, value end
if idempotency_hash ~= '' then
  note('idempotency', idempotency_hash)
  call('HSET', key_idempotency(tenant, idempotency_hash), 'fingerprint', fingerprint, 'job', id)
end
count_in_limits(limits, owners, expires)
if key ~= '' then note('key', key) end
if estimate ~= '0' then note('estimate', estimate) end
if webhook ~= '' then note('webhook', webhook) end
if limits.reserved then
  note('reserved', int(math.floor(now / BUCKET_MS)) .. ' ' .. table.concat(limits.reserved, ' '))
end
if attended_by ~= '' then
  note('attended_by', attended_by)
  call('SADD', key_attended(attended_by), id)
  call('ZADD', key_attendants(), 'NX', int(now + believed_ms), attended_by)
end
if is_quiet == '1' then
  note('quiet', 1)
else
  add_to_index(key_index(tenant), id, key_job)
  if labels ~= '' then
    note('labels', labels)
    add_labels(tenant, id, labels, expires + timeout_ms - now) -- and from its end on as long as its record
  end
end
call('HSET', key_job(id), unpack(record)) -- all fields in one command: each further one would cost 3 µs
begin_waiting(id, tenant, key ~= '' and key, int(expires))
if not_before_ms and not_before_ms > now then
  call('ZADD', key_deferred(), int(not_before_ms), id)
  wake()
  return {'created', int(now), int(expires), -1, states_of(limits)}
end
enqueue(id, flow, place)
wake()
local place_in_queue, is_ready = position(flow, call('ZCARD', key_flow(flow)), most_flows)
return {'created', int(now), int(expires), is_ready and place_in_queue or 0, states_of(limits)}
