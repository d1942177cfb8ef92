-- A job's event log and its followers.

-- Publishes to the followers of a job, and to those of its batch's tokens (batch: its id, or false). Returns how many
-- API processes received it.
local function publish(id, batch, message)
  local heard = call('PUBLISH', channel_events(id), message)
  if batch and call('EXISTS', key_batch_followed(batch)) == 1 then
    heard = heard + call('PUBLISH', channel_batch_events(batch), id .. '\n' .. message)
  end
  return heard
end

-- Appends to a log and publishes. events: name, data, name, data, ... Only CLAIM creates a log.
-- Returns how many API processes received it; false if the stream refused an event, and then nothing is published.
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
  return publish(id, batch, table.concat(message, '\n'))
end

-- The seq that a log takes next from the claim of that epoch (a text): 0 if it holds no event of that claim.
local function next_seq(id, epoch)
  local top = call('XREVRANGE', key_log(id), '+', '-', 'COUNT', 1)[1]
  local top_epoch, top_seq = string.match(top and top[1] or '', '^(%d+)-(%d+)$')
  return top_epoch == epoch and tonumber(top_seq) + 1 or 0
end
