-- uses: bookkeeping, spend
-- What holds back the jobs of a tenant, an API key or an end user although it is their turn.

-- For such an owner: how many jobs it may run at once (0: any number), and what is left of its budget after what it
-- spent and what its running jobs may cost; then its budgets (0: none). Read once per script. default_running: for a
-- tenant without a limit of its own.
local caps, of_end_users = {}, {}
local function cap_of(owner, default_running)
  if caps[owner] then return caps[owner] end
  local kind, name, found = string.match(owner, '^(%a+):(.*)$')
  if kind == 'tenant' then
    found = call('HMGET', key_tenant(name), 'running_jobs', 'nano_usd_per_day', 'nano_usd_per_month')
    found[1] = found[1] or default_running
  elseif kind == 'key' then
    found = {string.match(call('GET', key_key_limits(name)) or '', '^(%d+) (%d+) (%d+) ')}
  else
    local tenant = string.match(name, '^[^/]+')
    of_end_users[tenant] = of_end_users[tenant] or call('HMGET', key_tenant(tenant), 'end_user_running_jobs',
      'end_user_nano_usd_per_day', 'end_user_nano_usd_per_month')
    found = of_end_users[tenant]
  end
  local running, a_day, a_month = tonumber(found[1] or 0), tonumber(found[2] or 0), tonumber(found[3] or 0)
  local left = math.huge
  if a_day > 0 then left = a_day - spent_by(owner, day_name()) end
  if a_month > 0 then left = math.min(left, a_month - spent_by(owner, month_name())) end
  if left < math.huge then left = left - tonumber(call('HGET', key_held_budgets(), owner) or 0) end
  caps[owner] = {running, left, a_day, a_month}
  return caps[owner]
end

-- How many more jobs of an owner may start.
local function room_of(owner, default_running)
  local cap = cap_of(owner, default_running)
  if cap[2] <= 0 then return 0 end
  return cap[1] > 0 and math.max(0, cap[1] - call('SCARD', running_of(owner))) or math.huge
end
