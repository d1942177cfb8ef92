-- uses: api_key
-- args: id, tenant, changes, name, scopes, limits, maker, maker_digest, maker_tenant
-- CHANGE_API_KEY: changes what a key may do, if it was changed so often before: the rights of whoever asks were
-- compared with those that it had then. maker, maker_digest, maker_tenant: the key that asks for it.
-- Returns 'changed' | 'other' (it was changed meanwhile) | 'ended' (revoked or expired) | 'absent' | 'maker_ended' |
-- 'maker_replaced'
local why = refused(maker, maker_digest, maker_tenant)
if why then return why end
local key = standing(id, tenant)
if not key[1] then return 'absent' end
if not key[2] then return 'ended' end
local record = key_api_key(id)
if (call('HGET', record, 'changes') or '0') ~= changes then return 'other' end
call('HSET', record, 'name', name, 'scopes', scopes, 'limits', limits)
call('HINCRBY', record, 'changes', 1)
return 'changed'
