-- uses: now
-- args: worker, #seen_ms, #since_ms, #lease_ms, cursor
-- BURY: a worker is dead: ends those of its leases that were not renewed since then, so that REAP takes the jobs. Looks
-- at a page of the running jobs; the caller goes on with the cursor until it is 0.
-- seen_ms: when the worker announced itself last, as far as the caller knows. If it did so since, it lives.
-- Returns {next cursor, how many leases it ended}
write_without_memory()
if tonumber(call('HGET', key_worker(worker), 'seen_ms') or 0) ~= seen_ms then return {'0', 0} end
local page, ended = call('ZSCAN', key_running(), cursor, 'COUNT', 200), 0
for at = 1, #page[2], 2 do
  local id, expiry = page[2][at], tonumber(page[2][at + 1])
  if expiry > now and expiry <= since_ms + lease_ms and call('HGET', key_job(id), 'worker') == worker then
    call('ZADD', key_running(), 'XX', int(now), id)
    ended = ended + 1
  end
end
return {page[1], ended}
