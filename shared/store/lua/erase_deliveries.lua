-- uses: webhooks
-- args: tenant, #most
-- ERASE_DELIVERIES: deletes the next deliveries of a tenant. They are not sent any more.
-- Returns {how many were deleted, 1 if there may be more}
write_without_memory()
local erased = 0
local ids = call('ZRANGE', key_delivery_index(tenant), 0, most - 1)
for _, id in ipairs(ids) do
  if call('HGET', key_delivery(id), 'tenant') == tenant then
    drop_delivery(id)
    erased = erased + 1
  end
  call('ZREM', key_delivery_index(tenant), id)
end
return {erased, #ids == most and 1 or 0}
