-- EXPIRE: ends the queued jobs whose time is over.
-- ARGV: how many, states to expire from, expired, states to time out from, failed, timeout error, retention, id...
-- With ids only those are looked at. Returns {how many ended, ms until the next is due or -1}
local retention = ARGV[7]
local ended = 0
write_without_memory()
local ids = {}
if #ARGV > 7 then
  for i = 8, #ARGV do
    local due = call('ZSCORE', key_waiting(), ARGV[i])
    if due and tonumber(due) <= now then ids[#ids + 1] = ARGV[i] end
  end
else
  ids = call('ZRANGEBYSCORE', key_waiting(), '-inf', int(now), 'LIMIT', 0, ARGV[1])
end
for _, id in ipairs(ids) do
  if end_overdue(id, ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], retention) then ended = ended + 1 end
end
drop_kept()
local next_due = call('ZRANGE', key_waiting(), 0, 0, 'WITHSCORES')[2]
return {ended, next_due and int(math.max(0, tonumber(next_due) - now)) or -1}
