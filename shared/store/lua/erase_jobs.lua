-- uses: bookkeeping, held, webhooks
-- args: tenant, #most, sources, cancelled, retention
-- ERASE_JOBS: deletes the next jobs of a tenant, whatever they are doing. Those that have not ended are cancelled
-- first, and no webhook is sent. Their Idempotency-Keys stay, as in ERASE.
-- Returns {how many were deleted, how many of these were cancelled, 1 if there may be more}
write_without_memory()
local erased, stopped = 0, 0
local ids = call('ZRANGE', key_index(tenant), 0, most - 1)
for _, id in ipairs(ids) do
  local is_cancelled = cancel_job(id, tenant, sources, cancelled, retention)
  if is_cancelled ~= nil then
    if is_cancelled then stopped = stopped + 1 end
    give_up_request(id, tenant)
    call('DEL', key_job(id), key_result(id), key_log(id))
    call('ZREM', key_unfolded(), id)
    forget_delivery(id)
    erased = erased + 1
  end
  call('ZREM', key_index(tenant), id)
end
return {erased, stopped, #ids == most and 1 or 0}
