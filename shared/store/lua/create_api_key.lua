-- uses: api_key
-- args: id, tenant, env, name, scopes, limits, digest, #expires_in_ms, #latest_end_ms, #kept_ms, #most_keys, maker,
--   maker_digest
-- CREATE_API_KEY: creates a key. expires_in_ms: '' for no end. maker, maker_digest: of the key that creates it, '' and
-- '' for the command line. latest_end_ms: the maker's end, or ''. The new key must not outlive its maker; without an
-- end of its own it gets its maker's. kept_ms: how long its record is kept after its end. most_keys: of a tenant.
-- Returns {created_ms, expires_ms or ''} | {'outlives'} | {'full'} | {'taken'} (the id) | {'maker_ended'} |
-- {'maker_replaced'}
local why = refused(maker, maker_digest, tenant)
if why then return {why} end
local expires_ms = expires_in_ms and now + expires_in_ms or latest_end_ms
if latest_end_ms and expires_ms > latest_end_ms then return {'outlives'} end
if call('EXISTS', key_api_key(id)) == 1 then return {'taken'} end
for _, oldest in ipairs(call('ZRANGE', key_api_keys(tenant), 0, 19)) do
  if call('EXISTS', key_api_key(oldest)) == 0 then call('ZREM', key_api_keys(tenant), oldest) end
end
-- The command line is exempt: a thief who fills the list with a stolen key must not keep the operator from creating
-- another key.
if maker ~= '' and call('ZCARD', key_api_keys(tenant)) >= most_keys then return {'full'} end
call('HSET', key_api_key(id), 'tenant', tenant, 'env', env, 'name', name, 'scopes', scopes, 'limits', limits,
  'digest', digest, 'created_ms', int(now))
if maker ~= '' then call('HSET', key_api_key(id), 'made_by', maker) end
if expires_ms then
  call('HSET', key_api_key(id), 'expires_ms', int(expires_ms))
  call('PEXPIREAT', key_api_key(id), int(expires_ms + kept_ms))
end
call('ZADD', key_api_keys(tenant), 0, id)
call('SADD', key_api_key_tenants(), tenant)
return {int(now), expires_ms and int(expires_ms) or ''}
