-- OPEN_BATCH: a body begins to arrive.
-- ARGV: id, tenant, receiving, how long it may stay silent (ms), API key or '', its limits (6)
-- Returns {'opened'} | {'limited', code, ms to wait, told}: START would refuse it too, as far as can be told now.
local key = ARGV[5]
local refusal = refusal_of(look_at_limits(owners_of(ARGV[2], key, 6), key, 1, 0, 0, true))
if refusal then return refusal end
call('HSET', key_batch(ARGV[1]), 'state', ARGV[3], 'tenant', ARGV[2])
if key ~= '' then call('HSET', key_batch(ARGV[1]), 'key', key) end
call('ZADD', key_due(), int(now + tonumber(ARGV[4])), ARGV[1])
return {'opened'}
