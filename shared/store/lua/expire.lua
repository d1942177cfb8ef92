-- uses: held, overdue
-- args: most, expire_sources, expired, time_out_sources, failed, timeout_error, retention, ids...
-- EXPIRE: ends queued jobs whose time is over: those of `ids`, or at most `most` of all if there are no ids.
-- expire_sources, expired: for jobs that never started. time_out_sources, failed, timeout_error: for jobs that did.
-- Returns {how many ended, ms until the next is due or -1}
write_without_memory()
local ended, due = 0, {}
for _, id in ipairs(ids) do
  local due_ms = call('ZSCORE', key_waiting(), id)
  if due_ms and tonumber(due_ms) <= now then due[#due + 1] = id end
end
if #ids == 0 then due = call('ZRANGEBYSCORE', key_waiting(), '-inf', int(now), 'LIMIT', 0, most) end
for _, id in ipairs(due) do
  if end_overdue(id, expire_sources, expired, time_out_sources, failed, timeout_error, retention) then
    ended = ended + 1
  end
end
drop_kept()
local next_due = call('ZRANGE', key_waiting(), 0, 0, 'WITHSCORES')[2]
return {ended, next_due and int(math.max(0, tonumber(next_due) - now)) or -1}
