-- LOCATE: the queue positions of waiting jobs. ARGV: most flows to count, id...
-- Returns a position for each, -1 where it is in no flow (running, ended, or not due yet).
local positions = {}
for i = 2, #ARGV do
  local flow = call('HGET', key_job(ARGV[i]), 'flow')
  local rank = flow and call('ZRANK', key_flow(flow), ARGV[i])
  positions[#positions + 1] = rank and position(flow, rank + 1, tonumber(ARGV[1])) or -1
end
return positions
