-- uses: now
-- args: keys...
-- CHECK_API_KEYS: whether keys that were looked up before are still valid, for many in one call. Their secrets were
-- proven then: nobody guesses here, so the time of a comparison gives no secret away.   keys: id, digest, id, digest,
-- ...
-- Returns for each {for how many more ms it is valid at most (-1: it has no end, 0: it is no longer valid), 1 if its
-- secret was replaced by a newer one, else 0, how often its rights were changed}
local reply = {}
for at = 1, #keys, 2 do
  local id, digest = keys[at], keys[at + 1]
  local found = call('HMGET', key_api_key(id), 'digest', 'old_digest', 'old_until_ms', 'expires_ms', 'revoked_ms',
    'changes')
  local left, is_old = 0, 0
  if not found[5] and (digest == found[1] or digest == found[2]) then
    left = -1
    if found[4] then left = math.max(0, tonumber(found[4]) - now) end
    if digest ~= found[1] then
      is_old = 1
      local old = math.max(0, tonumber(found[3]) - now)
      if left < 0 or old < left then left = old end
    end
  end
  reply[#reply + 1] = {left, is_old, tonumber(found[6] or 0)}
end
return reply
