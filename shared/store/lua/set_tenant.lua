-- SET_TENANT: what an operator wants for a tenant. Jobs that were parked for its limits may start now.
-- ARGV: tenant, field, value (0: none), field, value, ...
write_without_memory() -- a flood is held back while it fills Redis
local record = key_tenant(ARGV[1])
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] == '0' then call('HDEL', record, ARGV[i]) else call('HSET', record, ARGV[i], ARGV[i + 1]) end
end
if call('EXISTS', record) == 1 then
  call('SADD', key_tenants(), ARGV[1])
else
  call('SREM', key_tenants(), ARGV[1])
end
look_at_parked('tenant:' .. ARGV[1])
return 1
