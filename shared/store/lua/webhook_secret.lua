-- uses: now
-- args: tenant, fresh, #grace_ms
-- WEBHOOK_SECRET: the secrets that sign a tenant's webhooks. The first one is created when it is first needed. fresh: a
-- new secret, in case one is needed. grace_ms: replace the secret, and let the old one sign too for so long; '' to
-- replace nothing.
-- Returns {current, created_ms, previous or '', previous_until_ms or ''}
local record = key_webhook_secret(tenant)
local known = call('HGET', record, 'current')
if not known then
  call('HSET', record, 'current', fresh, 'created_ms', int(now))
elseif grace_ms then
  call('HSET', record, 'current', fresh, 'created_ms', int(now), 'previous', known, 'previous_until_ms',
    int(now + grace_ms))
end
local found = call('HMGET', record, 'current', 'created_ms', 'previous', 'previous_until_ms')
if found[4] and tonumber(found[4]) <= now then
  call('HDEL', record, 'previous', 'previous_until_ms')
  found[3], found[4] = false, false
end
return {found[1], found[2], found[3] or '', found[4] or ''}
