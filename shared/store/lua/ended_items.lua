-- ENDED_ITEMS: the outcomes of a batch so far.
-- ARGV: id, in the order in which they ended (1/0), behind which line or '', how many to look at
-- Returns {the line looked up to or -1 behind the last, line, job id or '', why it cannot run or '', line, ...}
--       | false if that line has not ended
local id, most = ARGV[1], tonumber(ARGV[4])
local ended, items = key_batch_ended(id), key_batch_items(id)
local reply = {-1}

local function add(line, job)
  reply[#reply + 1] = tonumber(line)
  reply[#reply + 1] = job
  reply[#reply + 1] = job == '' and call('HGET', key_batch_invalid(id), line) or ''
end

if ARGV[2] == '1' then
  local from = 0
  if ARGV[3] ~= '' then
    local rank = call('ZRANK', ended, ARGV[3])
    if not rank then return false end
    from = rank + 1
  end
  local lines = call('ZRANGE', ended, from, from + most - 1)
  for _, line in ipairs(lines) do add(line, call('LINDEX', items, tonumber(line) - 1)) end
  if #lines == most then reply[1] = tonumber(lines[most]) end
else
  local from = tonumber(ARGV[3]) or 0
  local jobs = call('LRANGE', items, from, from + most - 1)
  for number, job in ipairs(jobs) do
    local line = from + number
    if call('ZSCORE', ended, line) then add(line, job) end
  end
  if #jobs == most then reply[1] = from + most end
end
return reply
