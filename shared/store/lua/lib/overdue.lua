-- uses: bookkeeping
-- Ends a queued job whose time is over: it expires if it never started, else it fails by its timeout. Returns whether
-- it ended.
local function end_overdue(id, expire_sources, expired, time_out_sources, failed, timeout_error, retention)
  local job = call('HMGET', key_job(id), 'state', 'tenant', 'flow', 'epoch', 'started_ms')
  local sources = job[5] and time_out_sources or expire_sources
  if not job[1] or not contains(sources, job[1]) then
    if job[2] then stop_waiting(id, job[2]) else call('ZREM', key_waiting(), id) end
    return false
  end
  leave(id, job[2], job[3])
  local extra = job[5] and {'error', timeout_error} or {}
  end_job(id, job[5] and failed or expired, next_epoch(job[4]), 0, retention, extra)
  return true
end
