-- uses: now
-- args: tenant
-- END_ERASURE: nothing is left of the tenant but what other scripts would drop in time, and the mark: both go now.
-- Returns 1 | 0 (something is left, which began before the mark)
write_without_memory()
for _, key in ipairs({key_index(tenant), key_batch_index(tenant), key_delivery_index(tenant)}) do
  if call('EXISTS', key) == 1 then return 0 end
end
for band in string.gmatch(BANDS, '[^,]+') do call('ZREM', key_turns(band), tenant) end
for _, key in ipairs({key_queued_jobs(), key_held_budgets()}) do call('HDEL', key, 'tenant:' .. tenant) end
call('HDEL', key_held_bytes(), tenant)
call('ZREM', key_kept_due(), tenant)
call('ZREM', key_due_operations(), tenant)
call('ZREM', key_parked(), 'tenant:' .. tenant)
call('DEL', key_kept_bytes(tenant), key_webhook_secret(tenant), key_erasure(tenant), key_tenant(tenant))
call('SREM', key_tenants(), tenant)
call('ZREM', key_erasures(), tenant)
return 1
