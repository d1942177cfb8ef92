-- args: tenant, #most
-- ERASE_OPERATIONS: deletes the next operations of a tenant, whatever they are doing.
-- Returns {how many were deleted, 1 if there may be more}
write_without_memory()
local ids = call('ZRANGE', key_operation_index(tenant), 0, most - 1)
for _, id in ipairs(ids) do
  call('DEL', key_operation(id))
  call('ZREM', key_open_operations(tenant), id)
  call('ZREM', key_operation_index(tenant), id)
end
return {#ids, #ids == most and 1 or 0}
