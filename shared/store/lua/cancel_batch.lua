-- CANCEL_BATCH: what has not ended is ended by ADVANCE_BATCH from now on.
-- ARGV: id, tenant, source states, cancelling, states that nobody sees   Returns 1 | 0 (over already) | -1 (no such batch)
write_without_memory()
local record = key_batch(ARGV[1])
local batch = call('HMGET', record, 'state', 'tenant')
if not batch[1] or batch[2] ~= ARGV[2] or contains(ARGV[5], batch[1]) then return -1 end
if not contains(ARGV[3], batch[1]) then return 0 end
call('HSET', record, 'state', ARGV[4], 'cancelled_ms', int(now))
call('ZADD', key_due(), int(now), ARGV[1])
return 1
