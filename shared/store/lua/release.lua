-- RELEASE: the holder of a claim gives the job back: to its old place, or deferred with a `retry` event.
-- ARGV: id, epoch, source states, queued, delay_ms (0: at once), failures to add, reset reason, retry event or '',
--       cost as in charge(), upstream calls begun or '' (as CLAIM counted)
-- Returns 1, also if this very claim was given back before: its first answer was lost. 0 if the claim is not the job's.
local id = ARGV[1]
write_without_memory()
local job = call('HMGET', key_job(id), 'state', 'epoch', 'tenant', 'flow', 'place', 'started_ms', 'timeout_ms', 'failures',
  'expires_ms', 'released_epoch', 'batch')
if job[10] and job[10] == ARGV[2] then return 1 end
if not job[1] or not contains(ARGV[3], job[1]) or job[2] ~= ARGV[2] then return 0 end
local epoch = next_epoch(job[2])
enter(id, job[11], job[1], ARGV[4])
call('HSET', key_job(id), 'epoch', int(epoch), 'failures', int(tonumber(job[8] or 0) + tonumber(ARGV[6])),
  'reset_reason', ARGV[7], 'released_epoch', ARGV[2])
if ARGV[8] ~= '' then append(id, job[11], epoch, 0, false, {'retry', ARGV[8]}) end
charge(id, ARGV[9])
local deadline = tonumber(job[6]) + tonumber(job[7])
if ARGV[10] ~= '' then call('HSET', key_job(id), 'attempts', ARGV[10]) end
if ARGV[10] == '0' then -- no call was begun: as if it had never started
  call('HDEL', key_job(id), 'started_ms')
  deadline = tonumber(job[9])
end
put_back(id, job[3], job[4], job[5], int(deadline), now + tonumber(ARGV[5]))
return 1
