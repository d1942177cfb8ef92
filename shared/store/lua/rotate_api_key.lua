-- uses: api_key
-- args: id, tenant, digest, #grace_ms, maker, maker_digest
-- ROTATE_API_KEY: a new secret, and two at most. The one before it is valid for a while yet, the one before that no
-- more; but a secret that nobody has used is thrown away instead: the response that held it was lost, and callers still
-- use the older. tenant: or '' for any. digest: of the new one. maker, maker_digest: of the key that asks for it, or ''
-- and ''.
-- Returns 'rotated' | 'ended': revoked or expired | 'absent' | 'maker_ended' | 'maker_replaced'
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
