-- uses: bookkeeping
-- An operation ends. retention: as in spans_ms().
local function end_operation(id, tenant, state, retention)
  local record = key_operation(id)
  local _, result_ms, idempotency_ms = kept_for(tenant, retention)
  call('HSET', record, 'state', state, 'ended_ms', int(now))
  call('HDEL', record, 'waiting_for')
  call('PEXPIRE', record, int(result_ms))
  local hash = call('HGET', record, 'idempotency')
  if hash then call('PEXPIRE', key_idempotency(tenant, hash), int(math.max(result_ms, idempotency_ms))) end
  call('ZREM', key_open_operations(tenant), id)
  if call('EXISTS', key_open_operations(tenant)) == 0 then
    call('ZREM', key_due_operations(), tenant)
  else
    call('ZADD', key_due_operations(), int(now), tenant) -- the next one need not wait as this one did
  end
end
