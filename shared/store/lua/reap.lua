-- uses: bookkeeping
-- args: #lease_ms, most, sources, queued, #fatal_takeovers, failed, error, retention
-- REAP: puts jobs whose lease expired back at their old places in the queue. A job that reaches fatal_takeovers fails
-- instead, unless its worker ran another suspect that may as well be what killed it: one with as many takeovers or
-- more.
-- Returns {ms until the next lease expires or -1, id, what became of it ('back' or 'failed'), ...}
write_without_memory()
stamp_alive(lease_ms)
local reply = {-1}
local grace = tonumber(call('GET', key_grace()) or 0)
if now < grace then
  reply[1] = int(grace - now)
  return reply
end
-- The most takeovers that a suspect of the worker had, and how many had as many. Those that this death has put back
-- still count, so each worker is looked at once.
local suspects_of = {}
local function most_suspect(worker)
  if not suspects_of[worker] then
    local highest, as_high = 0, 0
    for _, takeovers in ipairs(call('HVALS', key_suspects(worker))) do
      takeovers = tonumber(takeovers)
      if takeovers > highest then highest, as_high = takeovers, 0 end
      if takeovers == highest then as_high = as_high + 1 end
    end
    suspects_of[worker] = {highest, as_high}
    call('EXPIRE', key_suspects(worker), 60)
  end
  return suspects_of[worker][1], suspects_of[worker][2]
end

local function is_to_blame(worker, takeovers_before)
  if not worker then return true end
  local highest, as_high = most_suspect(worker)
  return highest < takeovers_before or (highest == takeovers_before and as_high <= 1)
end

for _, id in ipairs(call('ZRANGEBYSCORE', key_running(), '-inf', int(now), 'LIMIT', 0, most)) do
  local job = call('HMGET', key_job(id), 'state', 'tenant', 'flow', 'place', 'epoch', 'started_ms', 'timeout_ms',
    'confirmed', 'takeovers', 'attempts', 'batch', 'worker')
  if not job[1] or not contains(sources, job[1]) then
    call('ZREM', key_running(), id)
  else
    local takeovers = tonumber(job[9] or 0)
    if job[8] then
      takeovers = takeovers + 1
      call('HSET', key_job(id), 'takeovers', int(takeovers))
    else -- the worker died before it began: no attempt was made
      call('HSET', key_job(id), 'attempts', int(math.max(0, tonumber(job[10] or 1) - 1)))
    end
    call('HDEL', key_job(id), 'worker') -- before leave(), so that it stays among the suspects of this death
    if takeovers >= fatal_takeovers and job[8] and is_to_blame(job[12], takeovers - 1) then
      leave(id, job[2], job[3])
      end_job(id, failed, next_epoch(job[5]), 0, retention, {'error', error})
      reply[#reply + 1] = id
      reply[#reply + 1] = 'failed'
    else
      enter(id, job[11], job[1], queued)
      call('HSET', key_job(id), 'reset_reason', 'worker_lost')
      put_back(id, job[2], job[3], job[4], int(tonumber(job[6]) + tonumber(job[7])))
      reply[#reply + 1] = id
      reply[#reply + 1] = 'back'
    end
  end
end
local expiry = call('ZRANGE', key_running(), 0, 0, 'WITHSCORES')[2]
if expiry then reply[1] = int(math.max(0, tonumber(expiry) - now)) end
return reply
