-- uses: api_key
-- args: id, tenant, env, name, scopes, limits, digest, #expires_in_ms, #latest_end_ms, #kept_ms, #most_keys, maker,
--   maker_digest
-- CREATE_API_KEY: a new key. expires_in_ms: '' for no end. latest_end_ms: of the key that makes it, or '': nothing that
-- a key makes may outlive it; without an end of its own the new one has that. kept_ms: how long its record outlives it.
-- most_keys: of a tenant. maker, maker_digest: of the key that makes it, or '' and ''.
-- Returns {created_ms, expires_ms or ''} | {'outlives'} | {'full'} | {'taken'} | {'maker_ended'} | {'maker_replaced'}
local why = refused(maker, maker_digest, tenant)
if why then return {why} end
local expires_ms = expires_in_ms and now + expires_in_ms or latest_end_ms
if latest_end_ms and expires_ms > latest_end_ms then return {'outlives'} end
if call('EXISTS', key_api_key(id)) == 1 then return {'taken'} end
for _, oldest in ipairs(call('ZRANGE', key_api_keys(tenant), 0, 19)) do
  if call('EXISTS', key_api_key(oldest)) == 0 then call('ZREM', key_api_keys(tenant), oldest) end
end
-- The command line is not held to it: whoever fills the list with a stolen key must not keep the operator from making
-- another.
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
