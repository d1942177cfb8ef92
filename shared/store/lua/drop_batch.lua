-- DROP_BATCH: a batch that was not started, or has ended, is found no more; ADVANCE_BATCH erases it.
-- ARGV: id, tenant, source states, dropped, states that nobody sees
-- Returns 1 | 0 (it is in no such state) | -1 (no such batch of this tenant)
write_without_memory()
local record = key_batch(ARGV[1])
local batch = call('HMGET', record, 'state', 'tenant')
if not batch[1] or batch[2] ~= ARGV[2] then return -1 end
if not contains(ARGV[3], batch[1]) then return contains(ARGV[5], batch[1]) and -1 or 0 end
call('HSET', record, 'state', ARGV[4])
call('ZREM', key_batch_index(ARGV[2]), ARGV[1])
call('ZADD', key_due(), int(now), ARGV[1])
return 1
