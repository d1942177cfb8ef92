-- LIST_ITEMS: some items of a batch, the last line first. The owner is asked before anything is read.
-- ARGV: id, tenant, how many lines to look at, the item before which, or '', the line before which, or '' for all
-- Returns {the first line looked at, job id, ...}, {1} at the end; there is nothing of an absent or foreign batch, nor
-- before what is no item of this one
local id, items = ARGV[1], key_batch_items(ARGV[1])
if redis.call('HGET', key_batch(id), 'tenant') ~= ARGV[2] then return {1} end
local before
if ARGV[4] ~= '' then
  local item = redis.call('HMGET', key_job(ARGV[4]), 'batch', 'line')
  before = item[1] == id and tonumber(item[2]) or 1
else
  before = tonumber(ARGV[5]) or redis.call('LLEN', items) + 1
end
if before <= 1 then return {1} end
local first = math.max(1, before - tonumber(ARGV[3]))
local jobs = redis.call('LRANGE', items, first - 1, before - 2)
local reply = {first}
for at = #jobs, 1, -1 do
  if jobs[at] ~= '' then reply[#reply + 1] = jobs[at] end
end
return reply
