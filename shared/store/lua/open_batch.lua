-- uses: limits
-- args: id, tenant, receiving, silent_ms, key, key_limits
-- OPEN_BATCH: the body of a batch begins to arrive. silent_ms: how long it may stay silent before the batch is given
-- up. key: '' for none.
-- Returns {'opened'} | {'limited', ...} as in SUBMIT if START_BATCH would refuse the batch now
local refusal = refusal_of(look_at_limits(owners_of(tenant, key, key_limits), key, 1, 0, 0, true))
if refusal then return refusal end
call('HSET', key_batch(id), 'state', receiving, 'tenant', tenant)
if key ~= '' then call('HSET', key_batch(id), 'key', key) end
call('ZADD', key_due(), int(now + silent_ms), id)
return {'opened'}
