-- uses: now
-- args: keys...
-- USE_API_KEYS: these keys were used within the last minute. keys: id, digest, id, digest, ... A key that is gone is
-- not created again.
for at = 1, #keys, 2 do
  local record = key_api_key(keys[at])
  local found = call('HMGET', record, 'tenant', 'digest')
  if found[1] then call('HSET', record, 'last_used_ms', int(now)) end
  if found[2] == keys[at + 1] then call('HSET', record, 'is_used', 1) end
end
return 1
