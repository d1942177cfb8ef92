-- uses: bookkeeping, limits
-- args: id, tenant, sources, running, dropped, spec, common, timeout_ms, #expires_in_ms, not_before_ms,
--   idempotency_hash, fingerprint, retention, total, key, key_limits, user, webhook,
--   has_webhook_of_items
-- START_BATCH: the body has arrived completely: starts the batch, once per Idempotency-Key. ADVANCE_BATCH starts its
-- items.
-- '' for none: not_before_ms, idempotency_hash, total (how many lines were added), key (API key), user (of all items
-- without an end user of their own, <tenant>/<hash>), webhook (JSON).
-- common: the part of the spec that all items share. has_webhook_of_items: 1 if the webhook asks for events of items.
-- Returns {'started', states} | {'replayed', id} | {'reused'} | {'gone'} | {'limited', ...} | {'never', ...}, the last
-- two as in SUBMIT
local record = key_batch(id)
local batch = call('HMGET', record, 'state', 'tenant', 'live', 'total')
if not batch[1] or not contains(sources, batch[1]) or batch[2] ~= tenant then return {'gone'} end
if total ~= '' and total ~= (batch[4] or '0') then return {'gone'} end -- Redis has lost some in between
if idempotency_hash ~= '' then
  local known = call('HMGET', key_idempotency(tenant, idempotency_hash), 'fingerprint', 'job')
  if known[2] then
    call('HSET', record, 'state', dropped)
    call('ZADD', key_due(), int(now), id)
    if known[1] ~= fingerprint then return {'reused'} end
    return {'replayed', known[2]}
  end
end
local jobs = tonumber(batch[3] or 0)
local owners = owners_of(tenant, key, key_limits)
local limits = look_at_limits(owners, key, jobs, 0, 0, true)
local refusal = refusal_of(limits)
if refusal then return refusal end
if idempotency_hash ~= '' then
  call('HSET', key_idempotency(tenant, idempotency_hash), 'fingerprint', fingerprint, 'job', id)
  call('HSET', record, 'idempotency', idempotency_hash)
end
local expires = math.max(now, tonumber(not_before_ms) or 0) + expires_in_ms
count_in_limits(limits, owners, expires)
if key ~= '' then call('HSET', record, 'key', key) end
if jobs > 0 then count_queued(tenant, key ~= '' and key, jobs) end -- all of them, though they begin to wait in pieces
call('HSET', record, 'state', running, 'spec', spec, 'common', common, 'timeout_ms', timeout_ms,
  'not_before_ms', not_before_ms, 'created_ms', int(now), 'expires_ms', int(expires))
if user ~= '' then call('HSET', record, 'user', user) end
if webhook ~= '' then call('HSET', record, 'webhook', webhook) end
if has_webhook_of_items == '1' then call('HSET', record, 'webhook_of_items', 1) end
add_to_index(key_batch_index(tenant), id, key_batch)
call('ZADD', key_due(), int(now + 2000), id)
if jobs == 0 then end_batch(id, retention) end
return {'started', states_of(limits)}
