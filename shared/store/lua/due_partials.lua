-- uses: now
-- args: most
-- DUE_PARTIALS: jobs that ended without success after their followers saw content, and whose logs should be folded now.
-- Returns {{id, claim_epoch}, ...}
write_without_memory()
local due = {}
for _, id in ipairs(call('ZRANGEBYSCORE', key_unfolded(), '-inf', int(now), 'LIMIT', 0, most)) do
  local claim_epoch = call('HGET', key_job(id), 'claim_epoch')
  if claim_epoch then
    due[#due + 1] = {id, claim_epoch}
    call('ZADD', key_unfolded(), int(now + 30000), id) -- whoever asked is at it
  else
    call('ZREM', key_unfolded(), id) -- erased
  end
end
return due
