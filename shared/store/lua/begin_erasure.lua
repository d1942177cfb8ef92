-- uses: now
-- args: tenant
-- BEGIN_ERASURE: from now on the tenant's submits are refused, until END_ERASURE. A second call changes nothing.
write_without_memory()
if call('HSETNX', key_tenant(tenant), 'erasing_ms', int(now)) == 0 then return 0 end
call('SADD', key_tenants(), tenant)
call('ZADD', key_erasures(), int(now), tenant)
return 1
