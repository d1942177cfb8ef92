-- uses: held, webhooks
-- args: id, tenant, terminal
-- ERASE: deletes an ended job: its prompt, log and result. Its Idempotency-Key stays, so that a repeated submit creates
-- no second job.
-- terminal: the final states.   Returns 1 | 0 (it has not ended) | -1 (no such job of this tenant)
write_without_memory()
local job = call('HMGET', key_job(id), 'state', 'tenant')
if not job[1] or job[2] ~= tenant then return -1 end
if not contains(terminal, job[1]) then return 0 end
give_up_request(id, tenant)
call('DEL', key_job(id), key_result(id), key_log(id))
call('ZREM', key_unfolded(), id)
call('ZREM', key_index(tenant), id)
forget_delivery(id)
return 1
