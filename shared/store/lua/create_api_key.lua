-- CREATE_API_KEY: a key stands. ARGV: id, tenant, env, name, scopes, limits, digest, expires_in_ms or '', latest end or '',
--   how long its record outlives it (ms), how many keys a tenant may have, id and digest of the key that makes it, or '' and ''
-- latest end: of the key that makes it, which nothing that it makes may outlive; without an end of its own it has that one.
-- Returns {created_ms, expires_ms or ''} | {'outlives'} | {'full'} | {'taken'} | {'maker_ended'} | {'maker_replaced'}
local id, tenant = ARGV[1], ARGV[2]
local why = refused(ARGV[12], ARGV[13], tenant)
if why then return {why} end
local expires = ''
if ARGV[8] ~= '' then expires = int(now + tonumber(ARGV[8])) end
if ARGV[9] ~= '' then
  if expires ~= '' and tonumber(expires) > tonumber(ARGV[9]) then return {'outlives'} end
  if expires == '' then expires = ARGV[9] end
end
if call('EXISTS', key_api_key(id)) == 1 then return {'taken'} end
for _, oldest in ipairs(call('ZRANGE', key_api_keys(tenant), 0, 19)) do
  if call('EXISTS', key_api_key(oldest)) == 0 then call('ZREM', key_api_keys(tenant), oldest) end
end
-- The command line is not held to it: whoever fills the list with a stolen key must not keep the operator from making another.
if ARGV[12] ~= '' and call('ZCARD', key_api_keys(tenant)) >= tonumber(ARGV[11]) then return {'full'} end
call('HSET', key_api_key(id), 'tenant', tenant, 'env', ARGV[3], 'name', ARGV[4], 'scopes', ARGV[5], 'limits', ARGV[6],
  'digest', ARGV[7], 'created_ms', int(now))
if ARGV[12] ~= '' then call('HSET', key_api_key(id), 'made_by', ARGV[12]) end
if expires ~= '' then
  call('HSET', key_api_key(id), 'expires_ms', expires)
  call('PEXPIREAT', key_api_key(id), int(tonumber(expires) + tonumber(ARGV[10])))
end
call('ZADD', key_api_keys(tenant), 0, id)
call('SADD', key_api_key_tenants(), tenant)
return {int(now), expires}
