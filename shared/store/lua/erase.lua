-- uses: held, webhooks
-- args: id, tenant, terminal
-- ERASE: an ended job's prompt, log and result are gone. Its Idempotency-Key stays, so that no second job is created.
-- terminal: the states.   Returns 1 | 0 (it has not ended) | -1 (no such job of this tenant)
write_without_memory()
local job = call('HMGET', key_job(id), 'state', 'tenant')
if not job[1] or job[2] ~= tenant then return -1 end
if not contains(terminal, job[1]) then return 0 end
give_up_request(id, tenant)
call('DEL', key_job(id), key_result(id), key_log(id))
call('ZREM', key_index(tenant), id)
forget_delivery(id)
return 1
