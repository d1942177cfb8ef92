-- uses: bookkeeping
-- args: #lease_ms, sources, claims...
-- RENEW: a worker is alive: renews all of its leases. The first renewal of a claim confirms that its job started. An
-- expired lease that nobody has reaped is renewed like any other.
-- claims: id, epoch, when its newest content came (ms) or '', id, ...
-- Returns the ids of the jobs that their claims no longer hold.
write_without_memory()
stamp_alive(lease_ms)
local lost = {}
for at = 1, #claims, 3 do
  local id, epoch, last_token_ms = claims[at], claims[at + 1], claims[at + 2]
  local job = call('HMGET', key_job(id), 'state', 'epoch', 'confirmed')
  if job[1] and contains(sources, job[1]) and job[2] == epoch then
    call('ZADD', key_running(), int(now + lease_ms), id)
    if not job[3] then call('HSET', key_job(id), 'confirmed', 1) end
    if last_token_ms ~= '' then call('HSET', key_job(id), 'last_token_ms', last_token_ms) end
  else
    lost[#lost + 1] = id
  end
end
return lost
