-- uses: now
-- args: tenant, #lease_ms, #settle_ms, last, step, cursor, counts...
-- NOTE_ERASURE: a piece of an erasure is done: counts (name, how many more, name, ...) and, unless step is '', where
-- the next piece begins. A job that runs before the last step may leave traces after it is cancelled: its worker has
-- settle_ms to notice.
-- Returns {step or '', cursor or '', ms until no worker runs a job of the tenant any more} | nil if the erasure is over
write_without_memory()
if call('HEXISTS', key_tenant(tenant), 'erasing_ms') == 0 then return nil end
local record = key_erasure(tenant)
for at = 1, #counts, 2 do call('HINCRBY', record, counts[at], counts[at + 1]) end
if step ~= '' then call('HSET', record, 'step', step, 'cursor', cursor) end
call('ZADD', key_erasures(), int(now + lease_ms), tenant)
local found = call('HMGET', record, 'step', 'cursor', 'settled_ms')
if found[1] ~= last and call('EXISTS', key_tenant_running(tenant)) == 1 then
  call('HSET', record, 'settled_ms', int(now + settle_ms))
end
return {found[1] or '', found[2] or '', int(math.max(0, tonumber(found[3] or 0) - now))}
