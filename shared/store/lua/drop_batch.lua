-- uses: now
-- args: id, tenant, sources, dropped, unseen
-- DROP_BATCH: a batch that has not started, or has ended, no longer exists for callers; ADVANCE_BATCH erases it.
-- unseen: the states in which callers do not see a batch.   Returns 1 | 0 (its state does not allow it) | -1 (no such
-- batch of this tenant)
write_without_memory()
local record = key_batch(id)
local batch = call('HMGET', record, 'state', 'tenant')
if not batch[1] or batch[2] ~= tenant then return -1 end
if not contains(sources, batch[1]) then return contains(unseen, batch[1]) and -1 or 0 end
call('HSET', record, 'state', dropped)
call('ZREM', key_batch_index(tenant), id)
call('ZADD', key_due(), int(now), id)
return 1
