-- uses: now
-- args: id, tenant, sources, cancelling, unseen
-- CANCEL_BATCH: what has not ended is ended by ADVANCE_BATCH from now on. unseen: states that nobody sees.
-- Returns 1 | 0 (over already) | -1 (no such batch)
write_without_memory()
local record = key_batch(id)
local batch = call('HMGET', record, 'state', 'tenant')
if not batch[1] or batch[2] ~= tenant or contains(unseen, batch[1]) then return -1 end
if not contains(sources, batch[1]) then return 0 end
call('HSET', record, 'state', cancelling, 'cancelled_ms', int(now))
call('ZADD', key_due(), int(now), id)
return 1
