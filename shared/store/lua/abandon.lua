-- ABANDON: jobs whose client waited at an API process that is gone are cancelled.
-- ARGV: how many, states to cancel from, cancelled, retention, how long a process is believed (ms)
-- Returns their ids
local most, ended = tonumber(ARGV[1]), {}
write_without_memory()
-- Nobody looked for a while, so Redis was away, and no process could say that it lives: all are believed once more.
local spared = call('GET', key_spared())
call('SET', key_spared(), spared or int(now + tonumber(ARGV[5])), 'PX', 5000)
if not spared or now < tonumber(spared) then return ended end
for _, name in ipairs(call('ZRANGEBYSCORE', key_attendants(), '-inf', int(now), 'LIMIT', 0, 10)) do
  for _, id in ipairs(call('SRANDMEMBER', key_attended(name), most - #ended)) do
    local job = call('HMGET', key_job(id), 'state', 'tenant', 'flow', 'epoch', 'worker')
    if job[1] and contains(ARGV[2], job[1]) then
      leave(id, job[2], job[3])
      end_job(id, ARGV[3], next_epoch(job[4]), 0, ARGV[4], {})
      if job[5] then call('PUBLISH', channel_control(), 'cancel ' .. id) end
      ended[#ended + 1] = id
    else
      call('SREM', key_attended(name), id)
    end
  end
  if call('EXISTS', key_attended(name)) == 0 then call('ZREM', key_attendants(), name) end
  if #ended >= most then break end
end
return ended
