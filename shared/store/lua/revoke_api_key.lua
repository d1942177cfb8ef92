-- REVOKE_API_KEY: nobody is let in with it any more. Again it changes nothing.
-- ARGV: id, tenant or '' for any, how long its record is kept (ms). Returns 1 | 0: it was revoked before | -1: there is none
call('ZREM', key_api_keys(''), '') -- as write_without_memory: a leaked key can be revoked at maxmemory
local id = ARGV[1]
local key = standing(id, ARGV[2])
if not key[1] then return -1 end
local record = key_api_key(id)
if call('HEXISTS', record, 'revoked_ms') == 1 then return 0 end
call('HSET', record, 'revoked_ms', int(now))
call('HDEL', record, 'digest', 'old_digest', 'old_until_ms')
local left = call('PTTL', record)
if left < 0 or left > tonumber(ARGV[3]) then call('PEXPIRE', record, ARGV[3]) end
return 1
