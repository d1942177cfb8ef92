-- uses: bookkeeping, erasing
-- args: tenant, #most, sources, cancelled, retention, ids...
-- ERASE_JOBS: deletes these jobs of a tenant, or the next ones of its index if no id is given, whatever they are doing.
-- Those that have not ended are cancelled first, and no webhook is sent. Their Idempotency-Keys stay, as in ERASE.
-- Returns {how many were deleted, how many of these were cancelled, 1 if there may be more}
write_without_memory()
local erased, stopped = 0, 0
if #ids == 0 then ids = call('ZRANGE', key_index(tenant), 0, most - 1) end
for _, id in ipairs(ids) do
  local is_cancelled = cancel_job(id, tenant, sources, cancelled, retention)
  if is_cancelled ~= nil then
    if is_cancelled then stopped = stopped + 1 end
    erase_job(id, tenant)
    erased = erased + 1
  else
    call('ZREM', key_index(tenant), id)
  end
  call('DEL', key_labels(tenant, string.sub(id, 5, 9))) -- also what is left of records that are gone
end
return {erased, stopped, #ids == most and 1 or 0}
