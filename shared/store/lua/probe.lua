-- args: ids...
-- PROBE: how far the logs of some jobs go, for followers that have received nothing for a while. Reads only.
-- Returns for each {claim epoch or '', id of the terminal event or '', id of the log's last event or '',
-- state}, or {} if there is no such job any more.
local facts = {}
for at, id in ipairs(ids) do
  local job = call('HMGET', key_job(id), 'state', 'claim_epoch', 'end_id')
  if job[1] then
    local top = call('XREVRANGE', key_log(id), '+', '-', 'COUNT', 1)[1]
    facts[at] = {job[2] or '', job[3] or '', top and top[1] or '', job[1]}
  else
    facts[at] = {}
  end
end
return facts
