-- args: id, is_in_order_of_end, after, #most
-- ENDED_ITEMS: the outcomes of a batch so far, those after the line `after`; '' for all. is_in_order_of_end: 1 for the
-- order in which items ended, 0 for the order of the lines. most: how many lines to look at.
-- Returns {the line to continue after, or -1 at the end, line, job id or '', why it cannot run or '', line, ...}
--       | false if the line `after` has not ended
local ended, items = key_batch_ended(id), key_batch_items(id)
local reply = {-1}

local function add(line, job)
  reply[#reply + 1] = tonumber(line)
  reply[#reply + 1] = job
  reply[#reply + 1] = job == '' and call('HGET', key_batch_invalid(id), line) or ''
end

if is_in_order_of_end == '1' then
  local from = 0
  if after ~= '' then
    local rank = call('ZRANK', ended, after)
    if not rank then return false end
    from = rank + 1
  end
  local lines = call('ZRANGE', ended, from, from + most - 1)
  for _, line in ipairs(lines) do add(line, call('LINDEX', items, tonumber(line) - 1)) end
  if #lines == most then reply[1] = tonumber(lines[most]) end
else
  local from = tonumber(after) or 0
  local jobs = call('LRANGE', items, from, from + most - 1)
  for number, job in ipairs(jobs) do
    local line = from + number
    if call('ZSCORE', ended, line) then add(line, job) end
  end
  if #jobs == most then reply[1] = from + most end
end
return reply
