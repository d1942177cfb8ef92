-- OPEN_BATCH: a body begins to arrive.
-- ARGV: id, tenant, receiving, how long it may stay silent (ms)
call('HSET', key_batch(ARGV[1]), 'state', ARGV[3], 'tenant', ARGV[2])
call('ZADD', key_due(), int(now + tonumber(ARGV[4])), ARGV[1])
return 1
