-- uses: api_key
-- args: id, tenant, #kept_ms
-- REVOKE_API_KEY: the key is refused from now on. A second call changes nothing. tenant: '' for any.
-- kept_ms: how long its record is kept.   Returns 1 | 0 (it was revoked before) | -1 (no such key)
write_without_memory() -- a leaked key can be revoked at maxmemory
local key = standing(id, tenant)
if not key[1] then return -1 end
local record = key_api_key(id)
if call('HEXISTS', record, 'revoked_ms') == 1 then return 0 end
call('HSET', record, 'revoked_ms', int(now))
call('HDEL', record, 'digest', 'old_digest', 'old_until_ms')
local left = call('PTTL', record)
if left < 0 or left > kept_ms then call('PEXPIRE', record, int(kept_ms)) end
return 1
