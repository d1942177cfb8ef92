-- uses: operations
-- args: id, tenant, running, cancelled, retention
-- CANCEL_OPERATION: nothing more is done for an operation; what is done stays.
-- Returns 1 | 0 (it had ended) | -1 (no such operation of this tenant)
write_without_memory()
local operation = call('HMGET', key_operation(id), 'state', 'tenant')
if operation[2] ~= tenant then return -1 end
if operation[1] ~= running then return 0 end
end_operation(id, tenant, cancelled, retention)
return 1
