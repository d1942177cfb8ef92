-- uses: caps, bookkeeping, position
-- args: #most_flows, #tenant_limit, ids...
-- WAITS: what holds back queued jobs, without their routes. Reads only. Of all jobs of a flow the same is true but for
-- their places, so each flow is looked at once.
-- most_flows: how many flows of a band to count for a position. tenant_limit: as in CLAIM.
-- Returns {now, flows, a job's wait, ...}
--   flow = {hold, ...}, hold = {kind, 'running', limit, running}
--     or {kind, 'day' or 'month', limit, spent, held by running jobs, when the next period begins};
--     kind is 'tenant', 'key' or 'end_user'
--   wait = {number of its flow, position or 0, when it is due or 0, attempts begun (-1: it was not due yet)};
--     {} for a job that does not wait
local KINDS = {user = 'end_user'}
local function add_holds_of(owner, found)
  local kind, cap = string.match(owner, '^%a+'), cap_of(owner, tenant_limit)
  kind = KINDS[kind] or kind
  if cap[1] > 0 then
    local running = call('SCARD', cap[5])
    if running >= cap[1] then found[#found + 1] = {kind, 'running', int(cap[1]), int(running)} end
  end
  if cap[2] > 0 then return end
  local held = tonumber(call('HGET', key_held_budgets(), owner) or 0)
  local periods = {{'day', cap[3], day_name(), ms_to_next_day}, {'month', cap[4], month_name(), month_now}}
  for _, period in ipairs(periods) do
    local period_name, limit, date, ms_to_next = unpack(period)
    local spent = limit > 0 and spent_by(owner, date) or 0
    if limit > 0 and spent + held >= limit then
      found[#found + 1] = {kind, period_name, int(limit), int(spent), int(held), int(now + (ms_to_next()))}
    end
  end
end

local flows, numbers = {}, {}
local function number_of(flow)
  if not numbers[flow] then
    local holds = {}
    for _, owner in ipairs(owners_of_flow(flow)) do add_holds_of(owner, holds) end
    flows[#flows + 1] = holds
    numbers[flow] = #flows
  end
  return numbers[flow]
end

local function wait_of(id)
  local flow = call('HGET', key_job(id), 'flow')
  if not flow then return {} end
  local rank = call('ZRANK', key_flow(flow), id)
  if not rank then
    local due = tonumber(call('ZSCORE', key_deferred(), id))
    if not due then return {} end
    local job = call('HMGET', key_job(id), 'place', 'released_epoch', 'attempts')
    if due > now then return {number_of(flow), 0, int(due), tonumber(job[2] and job[3] or -1)} end
    -- Due, but no CLAIM has put it into its flow yet: it gets its old place.
    rank = call('ZCOUNT', key_flow(flow), '-inf', '(' .. job[1])
  end
  return {number_of(flow), position(flow, rank + 1, most_flows), 0, 0}
end

local reply = {int(now), flows}
for _, id in ipairs(ids) do reply[#reply + 1] = wait_of(id) end
return reply
