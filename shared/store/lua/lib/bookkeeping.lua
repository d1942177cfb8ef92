-- uses: now, labels, log, held, webhooks, window, owners
-- What the scripts of the life cycle share: turns and flows, the counts of waiting jobs and of items, and the end of a
-- job.
local QUIET_KEPT_MS = 60000 -- of a job that only its own submitter asks for, and right away

-- Notes that a worker called. If none called for half a lease, Redis was away, rather than all workers dead: then
-- nothing is reaped for one more lease. A missing stamp has expired, so the silence was long; without running jobs
-- there is nothing to spare.
local function stamp_alive(lease_ms)
  local alive = tonumber(call('GET', key_alive()) or 0)
  if now - alive > lease_ms / 2 and call('EXISTS', key_running()) == 1 then
    call('SET', key_grace(), int(now + lease_ms), 'PX', int(lease_ms))
  end
  call('SET', key_alive(), int(now), 'EX', 3600)
end

-- A wake is only a hint, since idle workers also look by themselves: if Redis refuses it, the job is still there.
local function wake()
  if call('DEL', key_hungry()) == 1 then redis.pcall('PUBLISH', channel_wake(), '') end
end

-- A flow's next turn. All flows of a tenant in a band share one sequence of turns, so that a tenant that names many
-- models delays another by one slot only. No turn is before the band's clock.
local function next_turn(band, tenant)
  local clock = tonumber(call('GET', key_clock(band)) or 0)
  local turn = math.max(clock, tonumber(call('ZSCORE', key_turns(band), tenant) or 0))
  call('ZADD', key_turns(band), int(turn + 1), tenant)
  return int(turn)
end

-- Where a flow may be parked: with one of its owners, or because its routes are gated. See CLAIM.
local GATED = 'gated:'
local function parked_places(flow, band)
  local places = {key_parked_flows(GATED, band)}
  for at, owner in ipairs(owners_of_flow(flow)) do places[at + 1] = key_parked_flows(owner, band) end
  return places
end

local function is_parked(flow, band)
  if call('EXISTS', key_parked()) == 0 then return false end
  for _, place in ipairs(parked_places(flow, band)) do
    if call('ZSCORE', place, flow) then return true end
  end
  return false
end

-- Puts a job into its flow at its place. A flow that was empty gets its tenant's next turn.
local function enqueue(id, flow, place)
  call('ZADD', key_flow(flow), place, id)
  local band, tenant = string.match(flow, '^([^:]+):([^:]+)')
  if call('ZSCORE', key_ready(band), flow) or is_parked(flow, band) then return end
  call('ZADD', key_ready(band), next_turn(band, tenant), flow)
end

-- A tenant's turn in a band was not used: it is the tenant's next one again.
local function give_turn_back(band, tenant, turn)
  call('ZREM', key_turns(band), tenant)
  if turn > tonumber(call('GET', key_clock(band)) or 0) then call('ZADD', key_turns(band), int(turn), tenant) end
end

-- Takes a job out of its flow. A flow that becomes empty gives its turn back, unless its tenant has later turns.
local function dequeue(id, flow)
  if call('ZREM', key_flow(flow), id) == 0 or call('EXISTS', key_flow(flow)) == 1 then return end
  local band, tenant = string.match(flow, '^([^:]+):([^:]+)')
  local turn = tonumber(call('ZSCORE', key_ready(band), flow))
  if turn then
    call('ZREM', key_ready(band), flow)
    if tonumber(call('ZSCORE', key_turns(band), tenant)) == turn + 1 then give_turn_back(band, tenant, turn) end
  else
    for _, place in ipairs(parked_places(flow, band)) do call('ZREM', place, flow) end
  end
end

-- A tenant, an API key or an end user may have room again: the next CLAIM looks at its parked flows.
local function look_at_parked(owner)
  if call('ZADD', key_parked(), 'XX', 'CH', int(now), owner) == 1 then wake() end
end

-- Adds to the number of waiting jobs of a tenant and of an API key (jobs may be negative). The number is exact: each
-- job is counted in the script that makes it wait. Only the items of a batch are counted before, when it starts.
local function count_queued(tenant, key, jobs)
  for _, owner in ipairs({'tenant:' .. tenant, key and 'key:' .. key or nil}) do
    if call('HINCRBY', key_queued_jobs(), owner, int(jobs)) <= 0 then call('HDEL', key_queued_jobs(), owner) end
  end
end

local function begin_waiting(id, tenant, key, deadline_ms)
  if call('ZADD', key_waiting(), deadline_ms, id) == 1 then count_queued(tenant, key, 1) end
end

local function stop_waiting(id, tenant)
  if call('ZREM', key_waiting(), id) == 1 then count_queued(tenant, call('HGET', key_job(id), 'key'), -1) end
end

-- An item goes from one state to another: updates its batch's counts. batch: its id, or false for other jobs.
local function count(batch, from, to)
  if batch then
    call('HINCRBY', key_batch(batch), from, -1)
    call('HINCRBY', key_batch(batch), to, 1)
  end
end

-- Sets a job's state, in a step that does not end it.
local function enter(id, batch, from, to)
  call('HSET', key_job(id), 'state', to)
  count(batch, from, to)
end

-- retention: how long log, result, idempotency record, and the log of an item without followers are kept, in ms,
-- separated by commas.
local function spans_ms(retention)
  local log, result, idempotency, item_log = string.match(retention, '^(%d+),(%d+),(%d+),(%d+)$')
  return tonumber(log), tonumber(result), tonumber(idempotency), tonumber(item_log)
end

-- As spans_ms, with the tenant's own retentions in place of the defaults.
local function kept_for(tenant, retention)
  local log_ms, result_ms, idempotency_ms, item_log_ms = spans_ms(retention)
  local own = call('HMGET', key_tenant(tenant), 'log_retention_ms', 'result_retention_ms')
  result_ms = tonumber(own[2] or result_ms)
  log_ms = math.min(tonumber(own[1] or log_ms), result_ms) -- it says what the result does, and is erased with its job
  return log_ms, result_ms, idempotency_ms, math.min(item_log_ms, log_ms)
end

local function end_batch(batch, retention)
  local record = key_batch(batch)
  local _, result_ms, idempotency_ms = kept_for(call('HGET', record, 'tenant'), retention)
  call('HSET', record, 'state', BATCH_ENDED, 'ended_ms', int(now))
  for _, key in ipairs({record, key_batch_items(batch), key_batch_invalid(batch), key_batch_ended(batch)}) do
    call('PEXPIRE', key, int(result_ms))
  end
  local key = call('HMGET', record, 'tenant', 'idempotency')
  if key[2] then call('PEXPIRE', key_idempotency(key[1], key[2]), int(math.max(result_ms, idempotency_ms))) end
  call('ZADD', key_due(), int(now), batch) -- ADVANCE_BATCH: the items reckoned with the latest end that it could have
  deliver_end_of_batch(batch)
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

-- Holds what a running job may cost of the budgets of its owners, so that at most one job exceeds a budget.
local function hold_budget(owners, nano)
  for _, owner in ipairs(owners) do
    if call('HINCRBY', key_held_budgets(), owner, int(nano)) <= 0 then call('HDEL', key_held_budgets(), owner) end
  end
end

-- Removes a job from everything that says that it runs or waits. The caller must then say where it is instead.
local function leave(id, tenant, flow)
  call('ZREM', key_running(), id)
  local owners, running = owners_of_flow(flow)
  for at, owner in ipairs(owners) do
    if call('SREM', running[at], id) == 1 then look_at_parked(owner) end
  end
  stop_waiting(id, tenant)
  call('ZREM', key_deferred(), id)
  dequeue(id, flow)
  local job = call('HMGET', key_job(id), 'held', 'takeovers', 'worker')
  if job[1] then hold_budget(owners, -job[1]) end
  if job[2] and job[3] then call('HDEL', key_suspects(job[3]), id) end
  call('HDEL', key_job(id), 'worker', 'confirmed', 'held')
end

-- Notes which attempts a claim made, because the rows of their calls are named after it: '<epoch>:<first>:<last>', the
-- newest MOST_CLAIMS of them.
local MOST_CLAIMS = 100
local function note_claim(record)
  local job = call('HMGET', record, 'claims', 'claim_epoch', 'attempts')
  local claims, last = job[1] or '', tonumber(job[3] or 0)
  local before = tonumber(string.match(claims, '%d+$') or 0)
  if last <= before then return end
  claims = claims .. ' ' .. job[2] .. ':' .. int(before + 1) .. ':' .. int(last)
  local _, spaces = string.gsub(claims, ' ', '')
  call('HSET', record, 'claims', spaces > MOST_CLAIMS and string.match(claims, '^ %S+(.*)') or claims)
end

-- Puts a job back into the queue: at its old place now, or deferred until due_ms.
local function put_back(id, tenant, flow, place, deadline_ms, due_ms)
  note_claim(key_job(id))
  leave(id, tenant, flow)
  begin_waiting(id, tenant, call('HGET', key_job(id), 'key'), deadline_ms)
  if due_ms and due_ms > now then
    call('ZADD', key_deferred(), int(due_ms), id)
  else
    enqueue(id, flow, place)
  end
  wake()
end

-- Replaces the tokens per minute that a submit reserved by those that were used. A job that never started used none; if
-- it started and its usage is unknown, the reservation stays.
local function give_tokens_back(reserved, owners, usage, has_started)
  local used
  if usage then
    used = 0
    for _, tokens in pairs(cjson.decode(usage)) do used = used + tokens end
  elseif not has_started then
    used = 0
  else
    return
  end
  local bucket, amounts = string.match(reserved, '^(%d+) (.*)$')
  local at = 0
  for amount in string.gmatch(amounts, '%d+') do
    at = at + 1
    if amount ~= '0' and owners[at] then
      correct(pace(), key_pace(owners[at]), bucket, {0, used - amount})
    end
  end
end

-- Ends a job, in the same way for every step that ends one. retention: as in spans_ms. extra: more fields of the
-- record. A job that never ran has no log: then only the record and the channel say that it ended.
local function end_job(id, state, epoch, seq, retention, extra, result, usage)
  local record = key_job(id)
  local end_id = int(epoch) .. '-' .. int(seq)
  local job = call('HMGET', record, 'state', 'tenant', 'idempotency', 'batch', 'line', 'expires_ms', 'timeout_ms',
    'attended_by', 'quiet', 'reserved', 'key', 'started_ms', 'webhook', 'bytes', 'published', 'labels')
  local batch, labels = job[4], job[16]
  if job[10] then
    give_tokens_back(job[10], {'tenant:' .. job[2], job[11] and 'key:' .. job[11]}, usage, job[12])
  end
  local code
  if not result and not job[9] then
    for at = 1, #extra, 2 do
      if extra[at] == 'error' then code = cjson.decode(extra[at + 1]).code end
    end
    if batch then
      if code then call('HINCRBY', key_batch(batch), 'failed:' .. code, 1) end
    else
      labels = (labels and labels .. ' ' or '') .. state .. (code and ' ' .. code or '')
      extra[#extra + 1], extra[#extra + 2] = 'labels', labels
    end
  end
  if not job[9] then call('HINCRBY', key_ended(), code and state .. ' ' .. code or state, 1) end
  call('HSET', record, 'state', state, 'epoch', int(epoch), 'ended_ms', int(now), 'end_id', end_id, unpack(extra))
  local data = '{"status":"' .. state .. '"}'
  local heard = append(id, batch, epoch, seq, false, {state, data})
    or publish(id, batch, end_id .. '\n' .. state .. '\n' .. data)

  local log_ms, result_ms, idempotency_ms, item_log_ms = kept_for(job[2], retention)
  if batch then
    if heard == 0 then log_ms = item_log_ms end
    -- Kept as long as its batch, which ends with its last item: at the latest when the time of an item is over.
    result_ms = result_ms + math.max(0, tonumber(job[6]) + tonumber(job[7]) - now)
  elseif job[9] then
    result_ms = math.min(result_ms, QUIET_KEPT_MS)
  end
  if labels then add_labels(job[2], id, labels, result_ms) end
  if result then
    call('SET', key_result(id), result, 'PX', int(result_ms))
  elseif job[15] then -- the log is needed until KEEP_PARTIAL has what came so far
    call('HSET', record, 'log_until_ms', int(now + log_ms))
    call('ZADD', key_unfolded(), int(now), id)
    log_ms = result_ms
  end
  call('PEXPIRE', key_log(id), int(log_ms))
  call('PEXPIRE', record, int(result_ms))
  if job[3] then call('PEXPIRE', key_idempotency(job[2], job[3]), int(math.max(result_ms, idempotency_ms))) end
  if result then
    call('HDEL', record, 'request', 'bytes')
    if job[14] then hold_bytes(job[2], -job[14]) end
  elseif job[14] then
    local until_ms = kept_until(result_ms)
    call('HSET', record, 'kept_until', until_ms)
    keep_bytes(job[2], job[14], until_ms)
  end
  if job[8] then call('SREM', key_attended(job[8]), id) end
  if job[13] then deliver_end_of_job(job[13], id, job[2], state, batch, usage) end
  if batch then
    count(batch, job[1], state)
    end_item(batch, job[5], usage, retention)
  end
end

-- An epoch for a new claim, or for a script that writes without a claim: greater than all before it.
local function next_epoch(epoch) return math.max(now, (tonumber(epoch) or 0) + 1) end

-- Cancels a job, whatever it is doing. tenant: its owner, or nil for any. Returns nil if there is no such job, false if
-- it had ended, true if it was cancelled.
local function cancel_job(id, tenant, sources, cancelled, retention)
  local job = call('HMGET', key_job(id), 'state', 'tenant', 'flow', 'epoch', 'worker')
  if not job[1] or (tenant and job[2] ~= tenant) then return nil end
  if not contains(sources, job[1]) then return false end
  leave(id, job[2], job[3])
  end_job(id, cancelled, next_epoch(job[4]), 0, retention, {})
  if job[5] then call('PUBLISH', channel_control(), 'cancel ' .. id) end
  return true
end
