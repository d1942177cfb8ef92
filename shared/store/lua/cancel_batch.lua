-- uses: now
-- args: id, tenant, sources, cancelling, unseen
-- CANCEL_BATCH: from now on ADVANCE_BATCH cancels the items that have not ended. unseen: the states in which callers do
-- not see a batch.
-- Returns 1 | 0 (it has ended, or is being cancelled) | -1 (no such batch of this tenant)
write_without_memory()
local record = key_batch(id)
local batch = call('HMGET', record, 'state', 'tenant')
if not batch[1] or batch[2] ~= tenant or contains(unseen, batch[1]) then return -1 end
if not contains(sources, batch[1]) then return 0 end
call('HSET', record, 'state', cancelling, 'cancelled_ms', int(now))
call('ZADD', key_due(), int(now), id)
return 1
