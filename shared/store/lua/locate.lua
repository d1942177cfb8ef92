-- uses: position
-- args: #most_flows, ids...
-- LOCATE: the queue positions of jobs. most_flows: how many flows of a band to count.
-- Returns a position for each, -1 if it is in no flow (running, ended, or not due yet).
local positions = {}
for at, id in ipairs(ids) do
  local flow = call('HGET', key_job(id), 'flow')
  local rank = flow and call('ZRANK', key_flow(flow), id)
  positions[at] = rank and position(flow, rank + 1, most_flows) or -1
end
return positions
