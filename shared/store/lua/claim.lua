-- uses: bookkeeping, caps, overdue
-- args: worker, #lease_ms, #most, #low_left, #tenant_limit, #suspect_at, #alone_left, #alone_at, sources, target,
--   expire_sources, expired, time_out_sources, failed, timeout_error, retention, bounds...
-- CLAIM: gives a worker its next jobs in the fair order, each with a new epoch and its `started` event.
-- most: how many jobs. low_left: how many of them may be of the lowest band. tenant_limit: running jobs of a tenant
-- that has no limit of its own (0: no limit).
-- suspect_at: a job with so many takeovers is a suspect, which may be what kills its workers. alone_at: with so many it
-- died together with other suspects, and runs apart from its like. alone_left: how many of these may start (1 or 0).
-- expire_sources to retention: as in EXPIRE.
-- bounds: name, bound, name, bound, ... of the routes that have one: how many of their jobs may start, or -1 (shut). A
-- bound with the name '' holds for each route that is not named.
-- Returns {ms until CLAIM should run again or -1, claim...}, claim = {id, tenant, epoch, now, attempt, next seq,
--       started_ms, timeout_ms, created_ms, failures, takeovers, request, spec}
stamp_alive(lease_ms)

local promoted = call('ZRANGEBYSCORE', key_deferred(), '-inf', int(now), 'LIMIT', 0, 200)
for _, id in ipairs(promoted) do
  call('ZREM', key_deferred(), id)
  local job = call('HMGET', key_job(id), 'flow', 'place')
  if job[1] then
    call('HSET', key_job(id), 'due_ms', int(now)) -- since then it waits for a worker
    enqueue(id, job[1], job[2])
  end
end

local bands = {}
for band in string.gmatch(BANDS, '[^,]+') do bands[#bands + 1] = band end
local lowest = bands[#bands]
local passed_over = {}
local quotas = {}
for at = 1, #bounds, 2 do quotas[bounds[at]] = tonumber(bounds[at + 1]) end

local function chain_of(flow) return string.match(flow, '^[^:]+:[^:]+:[^:]*:(.*)$') end

-- A job of the flow takes the first route of its chain that is not shut. Returns the quota of that route (nil: no
-- bound) and the route; 0 if all are shut.
local function quota_of(flow)
  for route in string.gmatch(chain_of(flow), '[^\n]+') do
    if not quotas[route] and quotas[''] then quotas[route] = quotas[''] end
    local quota = quotas[route]
    if quota ~= -1 then return quota, route end
  end
  return 0
end

-- Whether the quotas keep all jobs of the flow from starting. Cached by chain: thousands of flows share a few chains.
local gated = {}
local function is_gated(flow)
  local chain = chain_of(flow)
  if gated[chain] == nil then gated[chain] = quota_of(flow) == 0 end
  return gated[chain]
end

-- The job starts: holds what it may cost (nano-dollars) in the budgets of its owners, if they have any.
local function hold_budget_of(id, owners, nano)
  local has_budget = false
  for _, owner in ipairs(owners) do
    local cap = cap_of(owner, tenant_limit)
    has_budget = has_budget or cap[2] < math.huge
    cap[2] = cap[2] - nano
  end
  if not has_budget then return end
  hold_budget(owners, nano)
  call('HSET', key_job(id), 'held', int(nano))
end

-- A flow that has an owner without room is parked, out of the ready flows: there may be thousands, and each CLAIM would
-- look at all of them. Flows that are parked with the same owner keep their order.
local PARKED_LOOK_MS, USER_LOOK_MS, UNPARKED_AT_ONCE, most_moved, most_users = 10000, 60000, 20, 500, 30
local function is_user(owner) return string.sub(owner, 1, 5) == 'user:' end
-- When to look at parked flows if nothing makes room before; leave() and others look sooner. A tenant may have tens of
-- thousands of end users that have spent their budgets.
local function later(owner)
  return int(now + math.min(is_user(owner) and USER_LOOK_MS or PARKED_LOOK_MS, ms_to_next_day()))
end

local function park_with(owner, flow, band, turn)
  call('ZADD', key_parked_flows(owner, band), int(turn), flow)
  call('ZADD', key_parked(), 'NX', later(owner), owner)
  most_moved = most_moved - (is_user(owner) and 6 or 1) -- each end user has sums of its own, which were read
end

-- The flow's first owner without room, other than `except`; nil if all have room.
local function full_owner_of(flow, except)
  for _, owner in ipairs(owners_of_flow(flow)) do
    if owner ~= except and room_of(owner, tenant_limit) == 0 then return owner end
  end
end

-- Parks the flow if one of its owners has no room. Returns whether it did.
local function park(flow, band)
  local owner = full_owner_of(flow)
  if not owner then return false end
  local tenant = string.match(flow, '^[^:]+:([^:]+)')
  local is_tenant_full = owner == 'tenant:' .. tenant
  local turn = tonumber(call('ZSCORE', key_ready(band), flow))
  call('ZREM', key_ready(band), flow)
  park_with(owner, flow, band, turn)
  -- A tenant without room uses up no turns.
  local next_one = tonumber(call('ZSCORE', key_turns(band), tenant) or 0)
  if next_one == turn + 1 or (is_tenant_full and next_one > turn) then give_turn_back(band, tenant, turn) end
  return true
end

-- A gated flow, whose routes are shut or full, keeps its place and is skipped. Beyond MOST_GATED of them in one CLAIM,
-- the others are parked for a moment: a caller may name thousands of models of a full route, and each CLAIM would look
-- at all of them.
local MOST_GATED, GATED_LOOK_MS, gated_left = 200, 1000, 200
local function park_gated(flow, band)
  local tenant = string.match(flow, '^[^:]+:([^:]+)')
  local turn = tonumber(call('ZSCORE', key_ready(band), flow))
  call('ZREM', key_ready(band), flow)
  call('ZADD', key_parked_flows(GATED, band), int(turn), flow)
  call('ZADD', key_parked(), 'NX', int(now + GATED_LOOK_MS), GATED)
  most_moved = most_moved - 1
  if tonumber(call('ZSCORE', key_turns(band), tenant) or 0) == turn + 1 then give_turn_back(band, tenant, turn) end
end

-- Brings the parked gated flows back, in pieces, each at its tenant's next turn.
local function unpark_gated()
  local is_any_left = false
  for _, band in ipairs(bands) do
    local parked = key_parked_flows(GATED, band)
    for _, flow in ipairs(call('ZRANGE', parked, 0, MOST_GATED - 1)) do
      call('ZREM', parked, flow)
      most_moved = most_moved - 1
      if call('EXISTS', key_flow(flow)) == 1 then
        call('ZADD', key_ready(band), next_turn(band, string.match(flow, '^[^:]+:([^:]+)')), flow)
      end
    end
    is_any_left = is_any_left or call('EXISTS', parked) == 1
  end
  if is_any_left then
    call('ZADD', key_parked(), int(now + GATED_LOOK_MS / 4), GATED)
  else
    call('ZREM', key_parked(), GATED)
  end
end

-- Brings back as many flows of the owner as it has room for, in their order, each at its tenant's next turn.
local function unpark(owner)
  local room, is_any_left, look = room_of(owner, tenant_limit), false, later(owner)
  for _, band in ipairs(bands) do
    local parked, left = key_parked_flows(owner, band), room
    local flows = left > 0 and call('ZRANGE', parked, 0, UNPARKED_AT_ONCE - 1, 'WITHSCORES') or {}
    for i = 1, #flows, 2 do
      if left <= 0 then break end
      local flow, turn = flows[i], flows[i + 1]
      call('ZREM', parked, flow)
      most_moved = most_moved - 1
      local full_owner = full_owner_of(flow, owner)
      if full_owner then
        park_with(full_owner, flow, band, turn)
      elseif call('EXISTS', key_flow(flow)) == 1 then
        call('ZADD', key_ready(band), next_turn(band, string.match(flow, '^[^:]+:([^:]+)')), flow)
        if not (next(quotas) and is_gated(flow)) then left = left - 1 end
      end
    end
    if call('EXISTS', parked) == 1 then
      is_any_left = true
      -- Those that came back may not be the ones that start next: look again soon.
      if room > 0 then look = int(left > 0 and now or math.min(look, now + 1000)) end
    end
  end
  if is_any_left then call('ZADD', key_parked(), look, owner) else call('ZREM', key_parked(), owner) end
end
for _, owner in ipairs(call('ZRANGEBYSCORE', key_parked(), '-inf', int(now), 'LIMIT', 0, 200)) do
  if is_user(owner) then most_users = most_users - 1 end
  if most_moved > 0 and (most_users >= 0 or not is_user(owner)) then
    if owner == GATED then unpark_gated() else unpark(owner) end
  end
end

-- The flow with the lowest turn of a band that may start a job, and that job. Up to 32 jobs of a flow that must
-- run apart are skipped if none may start. Flows at the front that may not start are looked at only once per script:
-- thousands may wait for a shut route.
local skipped = {}
local function first_of(band)
  if band == lowest and low_left <= 0 then return nil end
  local offset = skipped[band] or 0
  local at_front, size = true, 10
  while offset < 5000 do
    local page, parked = call('ZRANGE', key_ready(band), offset, offset + size - 1), 0
    if #page == 0 then return nil end
    for at, flow in ipairs(page) do
      if most_moved <= 0 then return nil end -- whoever has room left comes again at once
      local is_gated_now = not passed_over[flow] and next(quotas) and is_gated(flow)
      if is_gated_now then gated_left = gated_left - 1 end
      if is_gated_now and gated_left < 0 then
        park_gated(flow, band)
        parked = parked + 1
      elseif passed_over[flow] or is_gated_now then
        passed_over[flow] = true
        if at_front then skipped[band] = offset + at - parked end
      elseif park(flow, band) then
        parked = parked + 1
      else
        at_front = false
        local id = call('ZRANGE', key_flow(flow), 0, 0)[1]
        local takeovers = alone_left > 0 and 0 or call('HGET', key_job(id), 'takeovers')
        if tonumber(takeovers or 0) < alone_at then return flow, id end
        for _, other in ipairs(call('ZRANGE', key_flow(flow), 0, 32)) do
          if tonumber(call('HGET', key_job(other), 'takeovers') or 0) < alone_at then return flow, other end
        end
        passed_over[flow] = true
      end
    end
    offset = offset + size - parked
    size = math.min(2 * size, 200)
  end
end

-- Picks from the highest band that has work; one pick in eight from the next lower band that has work.
local function pick()
  local flow, id, band
  local lower = call('INCR', key_picks()) % 8 == 0
  for _, name in ipairs(bands) do
    local candidate, candidate_id = first_of(name)
    if candidate then
      local was_found = flow ~= nil
      flow, id, band = candidate, candidate_id, name
      if was_found or not lower then break end
    end
  end
  return flow, id, band
end

-- The flow uses up its turn: the band's clock moves to that turn, and the flow gets its tenant's next one.
local function take_turn(flow, band, id)
  if next(quotas) then
    local quota, route = quota_of(flow)
    if quota then
      quotas[route] = quota - 1
      if quota == 1 then passed_over, skipped, gated = {}, {}, {} end -- what could start until now may not any more
    end
  end
  local turn = tonumber(call('ZSCORE', key_ready(band), flow))
  local clock = math.max(tonumber(call('GET', key_clock(band)) or 0), turn)
  call('SET', key_clock(band), int(clock))
  call('ZREM', key_flow(flow), id)
  if call('EXISTS', key_flow(flow)) == 1 then
    call('ZADD', key_ready(band), next_turn(band, string.match(flow, '^[^:]+:([^:]+)')), flow)
  else
    call('ZREM', key_ready(band), flow)
  end
  call('ZREMRANGEBYSCORE', key_turns(band), '-inf', int(clock))
end

local function start(id, was, flow)
  local record = key_job(id)
  local job = call('HMGET', record, 'tenant', 'epoch', 'attempts', 'published', 'reset_reason', 'started_ms',
    'timeout_ms', 'created_ms', 'failures', 'takeovers', 'request', 'spec', 'batch', 'quiet', 'estimate')
  local epoch, attempt = next_epoch(job[2]), tonumber(job[3] or 0) + 1
  local started_ms = job[6] or int(now)
  enter(id, job[13], was, target)
  call('HSET', record, 'epoch', int(epoch), 'claim_epoch', int(epoch), 'worker', worker,
    'attempts', int(attempt), 'started_ms', started_ms)
  call('ZADD', key_running(), int(now + lease_ms), id)
  local owners, running = owners_of_flow(flow)
  for _, set in ipairs(running) do call('SADD', set, id) end
  if job[15] then hold_budget_of(id, owners, tonumber(job[15])) end
  stop_waiting(id, job[1])
  local events = {'started', '{"attempt":' .. int(attempt) .. '}'}
  if job[4] then
    events[3], events[4] = 'reset', '{"attempt":' .. int(attempt) .. ',"reason":"' .. (job[5] or 'worker_lost') .. '"}'
    call('HDEL', record, 'published', 'reset_reason')
  end
  if job[14] then
    events = {}
  else
    append(id, job[13], epoch, 0, true, events)
  end
  local takeovers = tonumber(job[10] or 0)
  if takeovers >= suspect_at then
    call('HSET', key_suspects(worker), id, int(takeovers))
    call('EXPIRE', key_suspects(worker), 86400)
  end
  if takeovers >= alone_at then alone_left = alone_left - 1 end
  return {id, job[1], int(epoch), int(now), int(attempt), int(#events / 2), started_ms, job[7], job[8],
    job[9] or '0', job[10] or '0', job[11], job[12]}
end

-- A reply arrives whole or is lost. Hundreds of prompts of some MB would arrive after any timeout, and the jobs would
-- be claimed again and again.
local most_bytes = 8 * 1024 * 1024

local reply, touched, bytes = {-1}, #promoted, 0
while #reply <= most and touched < 500 and bytes < most_bytes do
  local flow, id, band = pick()
  if not flow then break end
  touched = touched + 1
  local state = call('HGET', key_job(id), 'state')
  if not state or not contains(sources, state) then
    dequeue(id, flow) -- erased, or ended by a path that did not leave: never run
  elseif tonumber(call('ZSCORE', key_waiting(), id) or 0) <= now then
    end_overdue(id, expire_sources, expired, time_out_sources, failed, timeout_error, retention)
  else
    take_turn(flow, band, id)
    if band == lowest then low_left = low_left - 1 end
    local claim = start(id, state, flow)
    bytes = bytes + #claim[12]
    reply[#reply + 1] = claim
  end
end
if touched >= 500 or bytes >= most_bytes or most_moved <= 0 then -- enough for one script: it is called again at once
  reply[1] = 0
  return reply
end
if #reply <= most then call('SET', key_hungry(), 1, 'EX', 60) end

for _, key in ipairs({key_deferred(), key_parked()}) do
  local due = tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
  if due and (reply[1] == -1 or due - now < tonumber(reply[1])) then reply[1] = int(math.max(0, due - now)) end
end
return reply
