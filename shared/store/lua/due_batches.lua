-- uses: now
-- args: most, receiving, dropped
-- DUE_BATCHES: the batches that should be advanced now. A batch whose body stays silent for too long is given up.
-- Returns ids
write_without_memory()
local ids = call('ZRANGEBYSCORE', key_due(), '-inf', int(now), 'LIMIT', 0, most)
for _, id in ipairs(ids) do
  if call('HGET', key_batch(id), 'state') == receiving then call('HSET', key_batch(id), 'state', dropped) end
  call('ZADD', key_due(), int(now + 2000), id) -- whoever asked is at it
end
return ids
