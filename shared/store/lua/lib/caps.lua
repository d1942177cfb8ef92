-- uses: bookkeeping, spend
-- What holds back the jobs of a tenant, an API key or an end user although it is their turn.

-- For such an owner: how many jobs it may run at once (0: any number), what is left of its budget after what it spent
-- and what its running jobs may cost, its budgets (0: none), and the set of its running jobs. Read once per script.
-- default_running: for a tenant without a limit of its own.
local caps, of_end_users = {}, {}
local function cap_of(owner, default_running)
  if caps[owner] then return caps[owner] end
  local kind, name = string.match(owner, '^(%a+):(.*)$')
  local found, running_jobs
  if kind == 'tenant' then
    found = call('HMGET', key_tenant(name), 'running_jobs', 'nano_usd_per_day', 'nano_usd_per_month')
    found[1], running_jobs = found[1] or default_running, key_tenant_running(name)
  elseif kind == 'key' then
    found = {string.match(call('GET', key_key_limits(name)) or '', '^(%d+) (%d+) (%d+) ')}
    running_jobs = key_key_running(name)
  else
    local tenant = string.match(name, '^[^/]+')
    of_end_users[tenant] = of_end_users[tenant] or call('HMGET', key_tenant(tenant), 'end_user_running_jobs',
      'end_user_nano_usd_per_day', 'end_user_nano_usd_per_month')
    found, running_jobs = of_end_users[tenant], key_user_running(name)
  end
  local running, a_day, a_month = tonumber(found[1] or 0), tonumber(found[2] or 0), tonumber(found[3] or 0)
  local left = math.huge
  if a_day > 0 then left = a_day - spent_by(owner, day_name()) end
  if a_month > 0 then left = math.min(left, a_month - spent_by(owner, month_name())) end
  if left < math.huge then left = left - tonumber(call('HGET', key_held_budgets(), owner) or 0) end
  caps[owner] = {running, left, a_day, a_month, running_jobs}
  return caps[owner]
end

-- How many more jobs of an owner may start.
local function room_of(owner, default_running)
  local cap = cap_of(owner, default_running)
  if cap[2] <= 0 then return 0 end
  return cap[1] > 0 and math.max(0, cap[1] - call('SCARD', cap[5])) or math.huge
end
