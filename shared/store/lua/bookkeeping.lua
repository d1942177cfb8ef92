-- Redis's clock, so that no machine's matters, and the bookkeeping that the life cycle's scripts share.
local QUIET_KEPT_MS = 60000 -- of a job that only its own submitter asks for, and right away
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- A mass silence is Redis having been away, not a mass death: then nothing is reaped for one more lease. A stamp that is
-- not there has aged away, which is a long silence; with no lease about there is nobody to spare.
local function stamp_alive(lease_ms)
  local alive = tonumber(call('GET', key_alive()) or 0)
  if now - alive > lease_ms / 2 and call('EXISTS', key_running()) == 1 then
    call('SET', key_grace(), int(now + lease_ms), 'PX', int(lease_ms))
  end
  call('SET', key_alive(), int(now), 'EX', 3600)
end

local function wake()
  if call('DEL', key_hungry()) == 1 then call('PUBLISH', channel_wake(), '') end
end

-- A flow's next turn. All flows of a tenant in a band share one sequence of turns, never behind the band's clock: however
-- many models a tenant asks for, it delays another by one slot.
local function next_turn(band, tenant)
  local clock = tonumber(call('GET', key_clock(band)) or 0)
  local turn = math.max(clock, tonumber(call('ZSCORE', key_turns(band), tenant) or 0))
  call('ZADD', key_turns(band), int(turn + 1), tenant)
  return int(turn)
end

-- Puts a job in its flow at its place. A flow that becomes non-empty takes its tenant's next turn.
local function enqueue(id, flow, place)
  call('ZADD', key_flow(flow), place, id)
  local band, tenant = string.match(flow, '^([^:]+):([^:]+)')
  if not call('ZSCORE', key_ready(band), flow) then call('ZADD', key_ready(band), next_turn(band, tenant), flow) end
end

-- Takes a job out of its flow. A flow that becomes empty gives its turn back, if it was its tenant's last.
local function dequeue(id, flow)
  if call('ZREM', key_flow(flow), id) == 1 and call('EXISTS', key_flow(flow)) == 0 then
    local band, tenant = string.match(flow, '^([^:]+):([^:]+)')
    local turn = tonumber(call('ZSCORE', key_ready(band), flow) or 0)
    call('ZREM', key_ready(band), flow)
    if tonumber(call('ZSCORE', key_turns(band), tenant) or 0) == turn + 1 then
      call('ZREM', key_turns(band), tenant)
      if turn > tonumber(call('GET', key_clock(band)) or 0) then call('ZADD', key_turns(band), int(turn), tenant) end
    end
  end
end

-- An item of a batch goes from one state to another: its batch counts with it. batch: its id, or false for other jobs.
local function count(batch, from, to)
  if batch then
    call('HINCRBY', key_batch(batch), from, -1)
    call('HINCRBY', key_batch(batch), to, 1)
  end
end

-- A job's state, where it does not end.
local function enter(id, batch, from, to)
  call('HSET', key_job(id), 'state', to)
  count(batch, from, to)
end

-- retention: how long log, result, idempotency record, and the log of an unheard item are kept, in ms, with commas.
local function kept_ms(retention)
  local log, result, idempotency, item_log = string.match(retention, '^(%d+),(%d+),(%d+),(%d+)$')
  return tonumber(log), tonumber(result), tonumber(idempotency), tonumber(item_log)
end

local function end_batch(batch, retention)
  local _, result_ms, idempotency_ms = kept_ms(retention)
  local record = key_batch(batch)
  call('HSET', record, 'state', BATCH_ENDED, 'ended_ms', int(now))
  for _, key in ipairs({record, key_batch_items(batch), key_batch_invalid(batch), key_batch_ended(batch)}) do
    call('PEXPIRE', key, int(result_ms))
  end
  local key = call('HMGET', record, 'tenant', 'idempotency')
  if key[2] then call('PEXPIRE', key_idempotency(key[1], key[2]), int(math.max(result_ms, idempotency_ms))) end
end

-- An item of a batch has ended. usage: of its answer, as JSON, or nil.
local function end_item(batch, line, usage, retention)
  local record = key_batch(batch)
  call('ZADD', key_batch_ended(batch), call('ZCARD', key_batch_ended(batch)), line)
  if usage then
    for name, tokens in pairs(cjson.decode(usage)) do call('HINCRBY', record, name, int(tokens)) end
  end
  if call('HINCRBY', record, 'live', -1) == 0 then end_batch(batch, retention) end
end

-- All that says a job runs or waits. The caller says next where it is instead.
local function leave(id, tenant, flow)
  call('ZREM', key_running(), id)
  call('SREM', key_tenant_running(tenant), id)
  call('ZREM', key_waiting(), id)
  call('ZREM', key_deferred(), id)
  dequeue(id, flow)
  call('HDEL', key_job(id), 'worker', 'confirmed')
end

-- Back to the queue: at its old place now, or deferred until due_ms.
local function put_back(id, tenant, flow, place, deadline_ms, due_ms)
  leave(id, tenant, flow)
  call('ZADD', key_waiting(), deadline_ms, id)
  if due_ms and due_ms > now then
    call('ZADD', key_deferred(), int(due_ms), id)
  else
    enqueue(id, flow, place)
  end
  wake()
end

-- The end of a job, the same for every way to end. retention: as in kept_ms. extra: more fields of the record. A job that
-- never ran has no log: then only the record and the channel say that it ended.
local function end_job(id, state, epoch, seq, retention, extra, result, usage)
  local record = key_job(id)
  local end_id = int(epoch) .. '-' .. int(seq)
  local job = call('HMGET', record, 'state', 'tenant', 'idempotency', 'batch', 'line', 'expires_ms', 'timeout_ms',
    'attended_by', 'quiet')
  local batch = job[4]
  call('HSET', record, 'state', state, 'epoch', int(epoch), 'ended_ms', int(now), 'end_id', end_id, unpack(extra))
  local data = '{"status":"' .. state .. '"}'
  local heard = append(id, batch, epoch, seq, false, {state, data}) or tell(id, batch, end_id .. '\n' .. state .. '\n' .. data)

  local log_ms, result_ms, idempotency_ms, item_log_ms = kept_ms(retention)
  if batch then
    if heard == 0 then log_ms = item_log_ms end
    -- As long as the batch, which ends with its last item: at the latest when an item's time is over.
    result_ms = result_ms + math.max(0, tonumber(job[6]) + tonumber(job[7]) - now)
  elseif job[9] then
    result_ms = math.min(result_ms, QUIET_KEPT_MS)
  end
  if result then call('SET', key_result(id), result, 'PX', int(result_ms)) end
  call('PEXPIRE', key_log(id), int(log_ms))
  call('PEXPIRE', record, int(result_ms))
  if job[3] then call('PEXPIRE', key_idempotency(job[2], job[3]), int(math.max(result_ms, idempotency_ms))) end
  if job[8] then call('SREM', key_attended(job[8]), id) end
  if batch then
    count(batch, job[1], state)
    end_item(batch, job[5], usage, retention)
  end
end

-- An epoch for a script that writes without holding the claim, or for a new claim: above everything before it.
local function next_epoch(epoch) return math.max(now, (tonumber(epoch) or 0) + 1) end
