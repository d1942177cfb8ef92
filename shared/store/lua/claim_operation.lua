-- uses: now
-- args: #lease_ms
-- CLAIM_OPERATION: somebody does the next piece of the operation that has been due longest. If nothing is heard of it
-- within the lease, another process does that piece again.
-- Returns {id, epoch} | false
write_without_memory()
local tenant = call('ZRANGEBYSCORE', key_due_operations(), '-inf', int(now), 'LIMIT', 0, 1)[1]
if not tenant then return false end
local id = call('ZRANGE', key_open_operations(tenant), 0, 0)[1]
if not id then
  call('ZREM', key_due_operations(), tenant)
  return false
end
call('ZADD', key_due_operations(), int(now + lease_ms), tenant)
return {id, call('HINCRBY', key_operation(id), 'epoch', 1)}
