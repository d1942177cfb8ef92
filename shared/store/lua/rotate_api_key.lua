-- ROTATE_API_KEY: a new secret, and two at most. The one before it is taken for a while yet, the one before that no more; but
-- a secret that nobody has used is thrown away instead: the answer that told it was lost, and callers still use the older.
-- ARGV: id, tenant or '' for any, digest of the new one, for how long the old one is taken (ms), id and digest of the key that
--   asks for it, or '' and ''
-- Returns 'rotated' | 'ended': revoked or expired | 'absent' | 'maker_ended' | 'maker_replaced'
local id = ARGV[1]
local why = refused(ARGV[5], ARGV[6], ARGV[2])
if why then return why end
local key = standing(id, ARGV[2])
if not key[1] then return 'absent' end
if not key[2] then return 'ended' end
local record, grace = key_api_key(id), tonumber(ARGV[4])
local found = call('HMGET', record, 'digest', 'is_used', 'old_digest', 'old_until_ms')
local old = found[1]
if not found[2] and found[3] and tonumber(found[4]) > now then old = found[3] end
if grace > 0 then
  call('HSET', record, 'old_digest', old, 'old_until_ms', int(now + grace))
else
  call('HDEL', record, 'old_digest', 'old_until_ms')
end
call('HSET', record, 'digest', ARGV[3], 'rotated_ms', int(now))
call('HDEL', record, 'is_used')
return 'rotated'
