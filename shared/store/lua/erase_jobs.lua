-- ERASE_JOBS: the next jobs of a tenant are gone, whatever they do: those that have not ended are cancelled first, and nobody is
-- told. Their Idempotency-Keys stay, as with ERASE. ARGV: tenant, how many, states to cancel from, cancelled, retention
-- Returns {how many were erased, how many of them were cancelled, 1 if there may be more}
write_without_memory()
local tenant, most = ARGV[1], tonumber(ARGV[2])
local erased, cancelled = 0, 0
local ids = call('ZRANGE', key_index(tenant), 0, most - 1)
for _, id in ipairs(ids) do
  local job = call('HMGET', key_job(id), 'state', 'tenant', 'flow', 'epoch', 'worker')
  if job[1] and job[2] == tenant then
    if contains(ARGV[3], job[1]) then
      leave(id, tenant, job[3])
      end_job(id, ARGV[4], next_epoch(job[4]), 0, ARGV[5], {})
      if job[5] then call('PUBLISH', channel_control(), 'cancel ' .. id) end
      cancelled = cancelled + 1
    end
    give_up_request(id, tenant)
    call('DEL', key_job(id), key_result(id), key_log(id))
    forget_delivery(id)
    erased = erased + 1
  end
  call('ZREM', key_index(tenant), id)
end
return {erased, cancelled, #ids == most and 1 or 0}
