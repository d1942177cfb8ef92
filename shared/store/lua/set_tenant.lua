-- uses: bookkeeping
-- args: tenant, changes...
-- SET_TENANT: changes the settings of a tenant. Jobs that were parked because of its limits may start now.
-- changes: field, value (0 removes it), field, value, ...
write_without_memory() -- a flood is held back while it fills Redis
local record = key_tenant(tenant)
for at = 1, #changes, 2 do
  local field, value = changes[at], changes[at + 1]
  if value == '0' then call('HDEL', record, field) else call('HSET', record, field, value) end
end
if call('EXISTS', record) == 1 then
  call('SADD', key_tenants(), tenant)
else
  call('SREM', key_tenants(), tenant)
end
look_at_parked('tenant:' .. tenant)
-- And its end users, as far as they are among the first: the next CLAIMs look at the others within a minute.
local of_end_users = 'user:' .. tenant .. '/'
for _, owner in ipairs(call('ZRANGE', key_parked(), 0, 499)) do
  if string.sub(owner, 1, #of_end_users) == of_end_users then look_at_parked(owner) end
end
return 1
