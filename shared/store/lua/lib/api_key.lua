-- uses: now

-- Returns {the key's tenant, or nil if `want` has no such key, whether the key is valid}. want: a tenant, '' for any.
local function standing(id, want)
  local found = call('HMGET', key_api_key(id), 'tenant', 'revoked_ms', 'expires_ms')
  if not found[1] or (want ~= '' and found[1] ~= want) then return {nil, false} end
  return {found[1], not found[2] and (not found[3] or tonumber(found[3]) > now)}
end

-- Why a key of the tenant must not create or rotate a key with the secret that it sent; nil if it may. The secret was
-- valid when the request began, and may have been revoked or replaced since. maker: '' for the command line, which
-- always may.
local function refused(maker, digest, tenant)
  if maker == '' then return nil end
  if not standing(maker, tenant)[2] then return 'maker_ended' end
  local found = call('HMGET', key_api_key(maker), 'digest', 'old_digest', 'old_until_ms')
  if digest == found[1] then return nil end
  if digest == found[2] and tonumber(found[3]) > now then return 'maker_replaced' end
  return 'maker_ended'
end
