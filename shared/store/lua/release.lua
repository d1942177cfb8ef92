-- uses: bookkeeping, spend
-- args: id, epoch, sources, queued, #delay_ms, #failures, reason, retry_event, cost, attempts,
--   last_token_ms
-- RELEASE: the holder of a claim puts the job back into the queue: at its old place, or deferred with a `retry` event.
-- delay_ms: 0 for at once. failures: how many to add. reason: for the `reset` event of the next claim. retry_event: its
-- data, or ''. cost: as in charge(). attempts: upstream calls begun so far, '' if CLAIM counted them right.
-- last_token_ms: when this claim's newest content came, '' for none.
-- Returns 1, also if this claim has released the job before and the first reply was lost. 0 if the claim no longer
-- holds the job.
write_without_memory()
local job = call('HMGET', key_job(id), 'state', 'epoch', 'tenant', 'flow', 'place', 'started_ms', 'timeout_ms',
  'failures', 'expires_ms', 'released_epoch', 'batch')
if job[10] == epoch then return 1 end
if not job[1] or not contains(sources, job[1]) or job[2] ~= epoch then return 0 end
local own_epoch = next_epoch(epoch)
enter(id, job[11], job[1], queued)
call('HSET', key_job(id), 'epoch', int(own_epoch), 'failures', int((job[8] or 0) + failures),
  'reset_reason', reason, 'released_epoch', epoch)
if retry_event ~= '' then append(id, job[11], own_epoch, 0, false, {'retry', retry_event}) end
charge(id, cost)
if last_token_ms ~= '' then call('HSET', key_job(id), 'last_token_ms', last_token_ms) end
local deadline = tonumber(job[6]) + tonumber(job[7])
if attempts ~= '' then call('HSET', key_job(id), 'attempts', attempts) end
if attempts == '0' then -- no call was begun: as if it had never started
  call('HDEL', key_job(id), 'started_ms')
  deadline = tonumber(job[9])
end
put_back(id, job[3], job[4], job[5], int(deadline), now + delay_ms)
return 1
