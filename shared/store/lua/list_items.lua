-- args: id, tenant, #most, before_item, #before_line
-- LIST_ITEMS: some items of a batch, the last line first. Checks the tenant before anything is read.
-- most: how many lines to look at. They end before the line of the job before_item; if that is '', before before_line;
-- if that is '' too, at the last line.
-- Returns {the first line looked at, job id, ...}. {1} at the end, for an absent batch or another tenant's, and for a
-- before_item that is in another batch
local items = key_batch_items(id)
if call('HGET', key_batch(id), 'tenant') ~= tenant then return {1} end
local before
if before_item ~= '' then
  local item = call('HMGET', key_job(before_item), 'batch', 'line')
  if item[1] == id then
    before = tonumber(item[2])
  else -- it was erased: then the list still has it
    local place = call('LPOS', items, before_item, 'RANK', -1)
    before = place and place + 1 or 1
  end
else
  before = before_line or call('LLEN', items) + 1
end
if before <= 1 then return {1} end
local first = math.max(1, before - most)
local jobs = call('LRANGE', items, first - 1, before - 2)
local reply = {first}
for at = #jobs, 1, -1 do
  if jobs[at] ~= '' then reply[#reply + 1] = jobs[at] end
end
return reply
