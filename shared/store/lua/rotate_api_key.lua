-- uses: api_key
-- args: id, tenant, digest, #grace_ms, maker, maker_digest
-- ROTATE_API_KEY: gives a key a new secret. At most two secrets are valid: the new one, and for grace_ms the one before
-- it. But if nobody has used the one before it, that one is dropped and the older stays valid: the response with the
-- unused secret was lost, and callers still use the older. tenant: '' for any. digest: of the new secret. maker,
-- maker_digest: of the key that asks for it, '' and '' for the command line.
-- Returns 'rotated' | 'ended' (revoked or expired) | 'absent' | 'maker_ended' | 'maker_replaced'
local why = refused(maker, maker_digest, tenant)
if why then return why end
local key = standing(id, tenant)
if not key[1] then return 'absent' end
if not key[2] then return 'ended' end
local record = key_api_key(id)
local found = call('HMGET', record, 'digest', 'is_used', 'old_digest', 'old_until_ms')
local old = found[1]
if not found[2] and found[3] and tonumber(found[4]) > now then old = found[3] end
if grace_ms > 0 then
  call('HSET', record, 'old_digest', old, 'old_until_ms', int(now + grace_ms))
else
  call('HDEL', record, 'old_digest', 'old_until_ms')
end
call('HSET', record, 'digest', digest, 'rotated_ms', int(now))
call('HDEL', record, 'is_used')
return 'rotated'
