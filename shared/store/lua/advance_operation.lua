-- uses: bookkeeping, erasing, operations
-- args: id, epoch, running, ended, #matched, #done, #skipped, #failed, cursor, is_last, waiting_for, #wait_ms, action,
--   sources, cancelled, terminal, retention, ids...
-- ADVANCE_OPERATION: a piece of an operation is done, with its counts and the cursor in one step, so that each job is
-- counted once. Refused if another process has claimed the operation since.
-- cursor: '' if nothing was done. is_last: 1 if nothing is left to do. waiting_for: why the next piece must wait for
-- wait_ms; '' for no reason. action: what this script itself does to the jobs `ids`: 'cancel', 'erase', or '' for
-- nothing. sources, cancelled: as in CANCEL. terminal: the final states.
-- Returns 1 | 0 (refused)
write_without_memory()
local record = key_operation(id)
local operation = call('HMGET', record, 'epoch', 'state', 'tenant')
local tenant = operation[3]
if operation[1] ~= epoch then return 0 end
local is_running = operation[2] == running
if is_running then
  for _, job in ipairs(ids) do
    local state, owner = unpack(call('HMGET', key_job(job), 'state', 'tenant'))
    local is_done = false
    if owner == tenant and action == 'cancel' then
      is_done = cancel_job(job, tenant, sources, cancelled, retention)
    elseif owner == tenant and contains(terminal, state) then
      erase_job(job, tenant)
      is_done = true
    end
    if is_done then done = done + 1 else skipped = skipped + 1 end
  end
else
  matched = matched - #ids -- it was cancelled meanwhile: nothing is done to these
end
for name, more in pairs({matched = matched, done = done, skipped = skipped, failed = failed}) do
  if more > 0 then call('HINCRBY', record, name, int(more)) end
end
if not is_running then return 1 end
if cursor ~= '' then call('HSET', record, 'cursor', cursor) end
if is_last == '1' then
  end_operation(id, tenant, ended, retention)
else
  if waiting_for ~= '' then
    call('HSET', record, 'waiting_for', waiting_for)
  else
    call('HDEL', record, 'waiting_for')
  end
  call('ZADD', key_due_operations(), int(now + wait_ms), tenant)
end
return 1
