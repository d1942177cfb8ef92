-- args: id, partial
-- KEEP_PARTIAL: stores what came so far of a job that ended without success, for as long as its record. From now on its
-- log is kept no longer than any other. partial: as JSON, '' if no content came.
write_without_memory()
call('ZREM', key_unfolded(), id)
local log_until_ms = call('HGET', key_job(id), 'log_until_ms')
if not log_until_ms then return end -- stored before, or erased
call('HDEL', key_job(id), 'log_until_ms')
if partial ~= '' then call('SET', key_result(id), partial, 'PX', call('PTTL', key_job(id))) end
call('PEXPIREAT', key_log(id), log_until_ms)
