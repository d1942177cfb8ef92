-- uses: now
-- args: id, tenant, action, filter, state, caller, idempotency_hash, fingerprint, #most
-- CREATE_OPERATION: an operation on a tenant's jobs begins, once per Idempotency-Key. It runs once those before it have
-- ended. filter: JSON. caller: for whom it retries, as JSON. idempotency_hash: '' for none. most: how many of a tenant
-- may be open.
-- Returns {'created'} | {'replayed', id} | {'reused'} | {'full'} | {'erasing'} (the tenant)
write_without_memory()
if idempotency_hash ~= '' then
  local known = call('HMGET', key_idempotency(tenant, idempotency_hash), 'fingerprint', 'job')
  if known[2] then
    if known[1] ~= fingerprint then return {'reused'} end
    return {'replayed', known[2]}
  end
end
if call('HEXISTS', key_tenant(tenant), 'erasing_ms') == 1 then return {'erasing'} end
if call('ZCARD', key_open_operations(tenant)) >= most then return {'full'} end
call('HSET', key_operation(id), 'tenant', tenant, 'action', action, 'filter', filter, 'state', state, 'caller', caller,
  'created_ms', int(now))
if idempotency_hash ~= '' then
  call('HSET', key_operation(id), 'idempotency', idempotency_hash)
  call('HSET', key_idempotency(tenant, idempotency_hash), 'fingerprint', fingerprint, 'job', id)
end
add_to_index(key_operation_index(tenant), id, key_operation)
call('ZADD', key_open_operations(tenant), 0, id)
call('ZADD', key_due_operations(), 'NX', int(now), tenant)
return {'created'}
