-- The head of every script. KEYS[1] is the shard's prefix. Keys of a job are made from its id: undeclared, but in the
-- slot of KEYS[1].
local call = redis.call

-- Lua's own conversion keeps 14 digits and may write an exponent: every number that is stored goes through here.
local function int(number) return string.format('%.0f', number) end

-- Redis at maxmemory refuses a script whose first writing command may need memory, and lets everything through behind
-- one that never does (measured on 7.0.15 and on Valkey 9.1). Scripts that must get through begin with this.
local function write_without_memory() call('ZREM', key_running(), '') end

-- Tells the followers of a job, and those of its batch's tokens (batch: its id, or false). Returns how many heard it.
local function tell(id, batch, message)
  local heard = call('PUBLISH', channel_events(id), message)
  if batch and call('EXISTS', key_batch_followed(batch)) == 1 then
    heard = heard + call('PUBLISH', channel_batch_events(batch), id .. '\n' .. message)
  end
  return heard
end

-- Appends to a log and tells the followers. events: name, data, name, data, ... A log that does not exist yet is made
-- only by CLAIM. Returns how many heard it; false if the stream refused, and then nothing is published.
local function append(id, batch, epoch, seq, create, events)
  local log = key_log(id)
  local message = {int(epoch) .. '-' .. int(seq)}
  for i = 1, #events, 2 do
    local event_id = int(epoch) .. '-' .. int(seq + (i - 1) / 2)
    local added
    if create then
      added = redis.pcall('XADD', log, event_id, events[i], events[i + 1])
    else
      added = redis.pcall('XADD', log, 'NOMKSTREAM', event_id, events[i], events[i + 1])
    end
    if not added or (type(added) == 'table' and added.err) then return false end
    message[#message + 1] = events[i]
    message[#message + 1] = events[i + 1]
  end
  return tell(id, batch, table.concat(message, '\n'))
end

local function contains(list, item)
  for word in string.gmatch(list, '[^,]+') do
    if word == item then return true end
  end
  return false
end
