-- RENEW: a worker is alive; all of its leases at once. The first renewal of a claim confirms that its job started.
-- An expired lease that nobody reaped is renewed like any other.
-- ARGV: lease_ms, running states, id, epoch, id, epoch, ...   Returns the ids that are no longer this claim's.
local lease_ms, lost = tonumber(ARGV[1]), {}
write_without_memory()
stamp_alive(lease_ms)
for i = 3, #ARGV, 2 do
  local job = call('HMGET', key_job(ARGV[i]), 'state', 'epoch', 'confirmed')
  if job[1] and contains(ARGV[2], job[1]) and job[2] == ARGV[i + 1] then
    call('ZADD', key_running(), int(now + lease_ms), ARGV[i])
    if not job[3] then call('HSET', key_job(ARGV[i]), 'confirmed', 1) end
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
