-- CANCEL: ends the job at once, whatever it does; its worker is told, and is refused from now on.
-- ARGV: id, tenant, source states, cancelled, retention   Returns 1 | 0 (it had ended) | -1 (no such job of this tenant)
local id = ARGV[1]
write_without_memory()
local job = call('HMGET', key_job(id), 'state', 'tenant', 'flow', 'epoch', 'worker')
if not job[1] or job[2] ~= ARGV[2] then return -1 end
if not contains(ARGV[3], job[1]) then return 0 end
leave(id, job[2], job[3])
end_job(id, ARGV[4], next_epoch(job[4]), 0, ARGV[5], {})
if job[5] then call('PUBLISH', channel_control(), 'cancel ' .. id) end
return 1
