-- uses: spend
-- What holds back the jobs of a tenant or an API key although it is their turn.

-- For a tenant or an API key: how many jobs it may run at once (0: any number), and what is left of its budget after
-- what it spent and what its running jobs may cost. Read once per script.
local caps = {}
local function cap_of(owner, running_limit, a_day, a_month)
  local left = math.huge
  if a_day > 0 then left = a_day - spent_by(owner, day_name()) end
  if a_month > 0 then left = math.min(left, a_month - spent_by(owner, month_name())) end
  if left < math.huge then left = left - tonumber(call('HGET', key_held_budgets(), owner) or 0) end
  caps[owner] = {running_limit, left}
  return caps[owner]
end

-- default_running: for a tenant without a limit of its own.
local function cap_of_tenant(tenant, default_running)
  local owner = 'tenant:' .. tenant
  if caps[owner] then return caps[owner] end
  local found = call('HMGET', key_tenant(tenant), 'running_jobs', 'nano_usd_per_day', 'nano_usd_per_month')
  return cap_of(owner, tonumber(found[1] or default_running), tonumber(found[2] or 0), tonumber(found[3] or 0))
end

local function cap_of_key(key)
  local owner = 'key:' .. key
  if caps[owner] then return caps[owner] end
  local limits = call('GET', key_key_limits(key)) or '0 0 0 0'
  local running_limit, a_day, a_month = string.match(limits, '^(%d+) (%d+) (%d+) ')
  return cap_of(owner, tonumber(running_limit), tonumber(a_day), tonumber(a_month))
end

-- How many more jobs of a tenant or an API key may start.
local function room_of(cap, running)
  if cap[2] <= 0 then return 0 end
  return cap[1] > 0 and math.max(0, cap[1] - call('SCARD', running)) or math.huge
end
