-- START_BATCH: the body is whole, and the batch stands, once per Idempotency-Key. Its items are started by ADVANCE_BATCH.
-- ARGV: id, tenant, source states, running, dropped, spec, what the items' specs have in common, timeout_ms, expires_in_ms,
--       not_before_ms or '', idempotency hash or '', fingerprint, retention, how many lines were added or '', API key or '',
--       its limits (6), webhook as JSON or '', whether it asks for events of items (1/0)
-- Returns {'started', told} | {'replayed', id} | {'reused'} | {'gone'} | {'limited' ...} | {'never' ...} as SUBMIT
local id, tenant = ARGV[1], ARGV[2]
local record = key_batch(id)
local batch = call('HMGET', record, 'state', 'tenant', 'live', 'total')
if not batch[1] or not contains(ARGV[3], batch[1]) or batch[2] ~= tenant then return {'gone'} end
if ARGV[14] ~= '' and ARGV[14] ~= (batch[4] or '0') then return {'gone'} end -- Redis has lost some in between
if ARGV[11] ~= '' then
  local known = call('HMGET', key_idempotency(tenant, ARGV[11]), 'fingerprint', 'job')
  if known[2] then
    call('HSET', record, 'state', ARGV[5])
    call('ZADD', key_due(), int(now), id)
    if known[1] ~= ARGV[12] then return {'reused'} end
    return {'replayed', known[2]}
  end
end
local key, jobs = ARGV[15], tonumber(batch[3] or 0)
local owners = owners_of(tenant, key, 16)
local limits = look_at_limits(owners, key, jobs, 0, 0, true)
local refusal = refusal_of(limits)
if refusal then return refusal end
if ARGV[11] ~= '' then
  call('HSET', key_idempotency(tenant, ARGV[11]), 'fingerprint', ARGV[12], 'job', id)
  call('HSET', record, 'idempotency', ARGV[11])
end
local expires = math.max(now, tonumber(ARGV[10]) or 0) + tonumber(ARGV[9])
count_in_limits(limits, owners, expires)
if key ~= '' then call('HSET', record, 'key', key) end
if jobs > 0 then count_queued(tenant, key ~= '' and key, jobs) end -- all of them, though they begin to wait in pieces
call('HSET', record, 'state', ARGV[4], 'spec', ARGV[6], 'common', ARGV[7], 'timeout_ms', ARGV[8], 'not_before_ms', ARGV[10],
  'created_ms', int(now), 'expires_ms', int(expires))
if ARGV[22] ~= '' then call('HSET', record, 'webhook', ARGV[22]) end
if ARGV[23] == '1' then call('HSET', record, 'webhook_of_items', 1) end
for _, oldest in ipairs(call('ZRANGE', key_batch_index(tenant), 0, 1)) do
  if call('EXISTS', key_batch(oldest)) == 1 then break end
  call('ZREM', key_batch_index(tenant), oldest)
end
call('ZADD', key_batch_index(tenant), 0, id)
call('ZADD', key_due(), int(now + 2000), id)
if jobs == 0 then end_batch(id, ARGV[13]) end
return {'started', told_of(limits)}
