-- uses: bookkeeping
-- args: tenant, is_created, changes...
-- SET_TENANT: changes the settings of a tenant. Jobs that were parked because of its limits may start now.
-- is_created: 1 if the tenant is to be listed even without settings. changes: field, value (0 removes it), ...
-- Returns 1 | 0 (it is being erased)
write_without_memory() -- a flood is held back while it fills Redis
local record = key_tenant(tenant)
if call('HEXISTS', record, 'erasing_ms') == 1 then return 0 end
if is_created == '1' then call('HSETNX', record, 'created_ms', int(now)) end
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
