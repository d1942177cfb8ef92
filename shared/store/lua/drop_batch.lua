-- DROP_BATCH: a batch that was not started, or has ended, is found no more; ADVANCE_BATCH erases it.
-- ARGV: id, tenant or '' (ours to know), source states, dropped   Returns 1 | 0 (not in such a state) | -1 (not this tenant's)
write_without_memory()
local record = key_batch(ARGV[1])
local batch = call('HMGET', record, 'state', 'tenant')
if not batch[1] or batch[1] == ARGV[4] or (ARGV[2] ~= '' and batch[2] ~= ARGV[2]) then return -1 end
if not contains(ARGV[3], batch[1]) then return 0 end
call('HSET', record, 'state', ARGV[4])
if batch[2] then call('ZREM', key_batch_index(batch[2]), ARGV[1]) end
call('ZADD', key_due(), int(now), ARGV[1])
return 1
