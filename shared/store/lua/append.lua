-- uses: log
-- args: id, epoch, sources, #seq, published, attempts, failures, events...
-- APPEND: appends events to the log of a claimed job, in order and without gaps. seq: of the first event. published: 1
-- if followers now see some of the answer, -1 if a reset took all of it back, 0 for unchanged. attempts, failures: new
-- values for the record, 0 for unchanged. events: name, data, name, data, ...
-- Returns the next seq that the log takes: the one after the last event, or a lower one if the log lost its tail (send
-- again from there). -1 if the claim no longer holds the job: then nothing was written or published.
write_without_memory()
local job = call('HMGET', key_job(id), 'state', 'epoch', 'batch')
if not job[1] or not contains(sources, job[1]) or job[2] ~= epoch then return -1 end
local expected = next_seq(id, epoch)
if seq > expected then return expected end
if published == '1' then call('HSET', key_job(id), 'published', 1) end
if published == '-1' then call('HDEL', key_job(id), 'published') end
if attempts ~= '0' then call('HSET', key_job(id), 'attempts', attempts, 'failures', failures) end
local new = events
if seq < expected then -- the log has some of them already
  new = {}
  for i = 1 + 2 * (expected - seq), #events do new[#new + 1] = events[i] end
end
if #new > 0 and not append(id, job[3], epoch, expected, false, new) then return -1 end
return math.max(expected, seq + #events / 2)
