-- uses: now
-- args: id, tenant, sources, dropped, unseen
-- DROP_BATCH: a batch that was not started, or has ended, is found no more; ADVANCE_BATCH erases it.
-- unseen: states that nobody sees.   Returns 1 | 0 (it is in no such state) | -1 (no such batch of this tenant)
write_without_memory()
local record = key_batch(id)
local batch = call('HMGET', record, 'state', 'tenant')
if not batch[1] or batch[2] ~= tenant then return -1 end
if not contains(sources, batch[1]) then return contains(unseen, batch[1]) and -1 or 0 end
call('HSET', record, 'state', dropped)
call('ZREM', key_batch_index(tenant), id)
call('ZADD', key_due(), int(now), id)
return 1
