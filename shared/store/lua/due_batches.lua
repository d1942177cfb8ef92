-- DUE_BATCHES: those that somebody should advance. One that came in and fell silent is given up.
-- ARGV: how many, receiving, dropped   Returns ids
write_without_memory()
local ids = call('ZRANGEBYSCORE', key_due(), '-inf', int(now), 'LIMIT', 0, ARGV[1])
for _, id in ipairs(ids) do
  if call('HGET', key_batch(id), 'state') == ARGV[2] then call('HSET', key_batch(id), 'state', ARGV[3]) end
  call('ZADD', key_due(), int(now + 2000), id) -- whoever asked is at it
end
return ids
