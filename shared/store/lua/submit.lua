-- SUBMIT: a job is born, once per Idempotency-Key.
-- ARGV: id, tenant, flow, state, request, spec, timeout_ms, expires_in_ms, not_before_ms or '', idempotency hash or '',
--       fingerprint, most waiting jobs, most flows to count for the position, API process that attends it or '',
--       quiet (1/0: without a log, and in no list), how long an API process is believed (ms), tokens to reserve, API key
--       or '', its limits (6), webhook as JSON or '', how many of the tokens are max_tokens,
--       what it may cost (nano-dollars), bytes that a tenant may hold
-- Returns {'created', created_ms, expires_ms, position, told} | {'replayed', job id} | {'reused'} | {'full'}
--       | {'limited', code, ms to wait, told, the limit or nil} | {'never', what is limited, the limit}; told as in told_of()
local id, tenant, flow, state = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local not_before = tonumber(ARGV[9])
if ARGV[10] ~= '' then
  local known = call('HMGET', key_idempotency(tenant, ARGV[10]), 'fingerprint', 'job')
  if known[2] then
    if known[1] ~= ARGV[11] then return {'reused'} end
    return {'replayed', known[2]}
  end
end
if call('ZCARD', key_waiting()) >= tonumber(ARGV[12]) then return {'full'} end
local key = ARGV[18]
local owners = owners_of(tenant, key, 19)
local limits = look_at_limits(owners, key, 1, tonumber(ARGV[17]), tonumber(ARGV[26]), true)
local refusal = refusal_of(limits)
if refusal then return refusal end
local bytes = #ARGV[5] + #ARGV[6]
refusal = hold_or_refuse(owners, tenant, bytes, ARGV[28])
if refusal then return refusal end

local place = call('INCR', key_places())
local expires = math.max(now, not_before or 0) + tonumber(ARGV[8])
call('HSET', key_job(id), 'state', state, 'tenant', tenant, 'flow', flow, 'place', place, 'created_ms', int(now),
  'expires_ms', int(expires), 'timeout_ms', ARGV[7], 'request', ARGV[5], 'spec', ARGV[6], 'bytes', bytes)
if ARGV[10] ~= '' then
  call('HSET', key_job(id), 'idempotency', ARGV[10])
  call('HSET', key_idempotency(tenant, ARGV[10]), 'fingerprint', ARGV[11], 'job', id)
end
count_in_limits(limits, owners, expires)
if key ~= '' then call('HSET', key_job(id), 'key', key) end
if ARGV[27] ~= '0' then call('HSET', key_job(id), 'estimate', ARGV[27]) end
if ARGV[25] ~= '' then call('HSET', key_job(id), 'webhook', ARGV[25]) end
if limits.reserved then
  call('HSET', key_job(id), 'reserved', int(math.floor(now / BUCKET_MS)) .. ' ' .. table.concat(limits.reserved, ' '))
end
if ARGV[14] ~= '' then
  call('HSET', key_job(id), 'attended_by', ARGV[14])
  call('SADD', key_attended(ARGV[14]), id)
  call('ZADD', key_attendants(), 'NX', int(now + tonumber(ARGV[16])), ARGV[14])
end
if ARGV[15] == '1' then
  call('HSET', key_job(id), 'quiet', 1)
else
  -- The index has no TTL; instead each submit drops up to two of its oldest entries whose record is gone.
  for _, oldest in ipairs(call('ZRANGE', key_index(tenant), 0, 1)) do
    if call('EXISTS', key_job(oldest)) == 1 then break end
    call('ZREM', key_index(tenant), oldest)
  end
  call('ZADD', key_index(tenant), 0, id)
end
begin_waiting(id, tenant, key ~= '' and key, int(expires))
if not_before and not_before > now then
  call('ZADD', key_deferred(), int(not_before), id)
  wake()
  return {'created', int(now), int(expires), -1, told_of(limits)}
end
enqueue(id, flow, place)
wake()
return {'created', int(now), int(expires), position(flow, call('ZCARD', key_flow(flow)), tonumber(ARGV[13])),
  told_of(limits)}
