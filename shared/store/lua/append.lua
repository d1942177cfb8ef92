-- APPEND: events of a claim's job, in order and without holes.
-- ARGV: id, epoch, running states, seq of the first, published (1: followers see something of the answer; -1: a reset took it
--       all back; 0: unchanged), attempts (0: unchanged), failures (0: unchanged),
--       name, data, name, data, ...
-- Returns the next seq that the log takes: behind the last one given, or less if the log lost a tail (send again from
-- there). -1 if the claim is not the job's: refused, nothing written, nothing published.
local id, epoch, seq = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])
write_without_memory()
local job = call('HMGET', key_job(id), 'state', 'epoch', 'batch')
if not job[1] or not contains(ARGV[3], job[1]) or job[2] ~= ARGV[2] then return -1 end
local top = call('XREVRANGE', key_log(id), '+', '-', 'COUNT', 1)[1]
local expected = 0
if top then
  local top_epoch, top_seq = string.match(top[1], '^(%d+)-(%d+)$')
  if top_epoch == ARGV[2] then expected = tonumber(top_seq) + 1 end
end
if seq > expected then return expected end
if ARGV[5] == '1' then call('HSET', key_job(id), 'published', 1) end
if ARGV[5] == '-1' then call('HDEL', key_job(id), 'published') end
if ARGV[6] ~= '0' then call('HSET', key_job(id), 'attempts', ARGV[6], 'failures', ARGV[7]) end
local events = {}
for i = 8 + 2 * (expected - seq), #ARGV do events[#events + 1] = ARGV[i] end
if #events > 0 and not append(id, job[3], epoch, expected, false, events) then return -1 end
return math.max(expected, seq + (#ARGV - 7) / 2)
