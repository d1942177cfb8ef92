-- uses: log
-- args: id, epoch, sources, #seq, published, attempts, failures, events...
-- APPEND: events of a claim's job, in order and without holes. seq: of the first. published: 1 if followers see
-- something of the answer, -1 if a reset took all of it back, 0: unchanged. attempts, failures: 0 for unchanged.
-- events: name, data, name, data, ...
-- Returns the next seq that the log takes: that after the last one given, or less if the log lost a tail (send again
-- from there). -1 if the claim is not the job's: refused, nothing written, nothing published.
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
