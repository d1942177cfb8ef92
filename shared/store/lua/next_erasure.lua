-- uses: now
-- args: #lease_ms
-- NEXT_ERASURE: a tenant that is being erased and that no process works on. It is left to whoever asks for lease_ms.
-- Returns its name or nil
write_without_memory()
local tenant = call('ZRANGEBYSCORE', key_erasures(), '-inf', int(now), 'LIMIT', 0, 1)[1]
if tenant then call('ZADD', key_erasures(), int(now + lease_ms), tenant) end
return tenant
