-- uses: erasing
-- args: id, tenant, terminal
-- ERASE: deletes an ended job, as erase_job() does.
-- terminal: the final states.   Returns 1 | 0 (it has not ended) | -1 (no such job of this tenant)
write_without_memory()
local job = call('HMGET', key_job(id), 'state', 'tenant')
if not job[1] or job[2] ~= tenant then return -1 end
if not contains(terminal, job[1]) then return 0 end
erase_job(id, tenant)
return 1
