-- uses: bookkeeping
-- args: #most, sources, cancelled, retention, believed_ms
-- ABANDON: cancels jobs whose client waited at an API process that is gone. most: how many at once. believed_ms: how
-- long an API process is believed to live after its last ATTEND.
-- Returns the ids of the cancelled jobs
write_without_memory()
local ended = {}
-- Nobody looked for 5 s: Redis was away, and no API process could call ATTEND. Cancel nothing until they had the time.
local spared = call('GET', key_spared())
call('SET', key_spared(), spared or int(now + believed_ms), 'PX', 5000)
if not spared or now < tonumber(spared) then return ended end
for _, name in ipairs(call('ZRANGEBYSCORE', key_attendants(), '-inf', int(now), 'LIMIT', 0, 10)) do
  for _, id in ipairs(call('SRANDMEMBER', key_attended(name), most - #ended)) do
    if cancel_job(id, nil, sources, cancelled, retention) then
      ended[#ended + 1] = id
    else
      call('SREM', key_attended(name), id)
    end
  end
  if call('EXISTS', key_attended(name)) == 0 then call('ZREM', key_attendants(), name) end
  if #ended >= most then break end
end
return ended
